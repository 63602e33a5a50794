"""Scores rollouts: a reward model, verifiers and an LM judge, combined by the expression of a `Reward`."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from easylm_jax.checkpoint.load import model_from
from easylm_jax.config import Reward
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import Cache
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import rollout
from easylm_jax.decode.generator import check_context_length, check_pictures
from easylm_jax.decode.rollout import Rollout
from easylm_jax.objectives import score_responses
from easylm_jax.objectives.forward import images_of
from easylm_jax.rewards import lm_judge
from easylm_jax.rewards.lm_judge import Judge
from easylm_jax.rewards.moderator import Moderator, harmless_scores, load_moderator
from easylm_jax.rewards.verify import ExpressionScorer, Scores
from easylm_jax.runtime import chunked, compiler, processes
from models.config import Compute
from models.errors import UserError
from models.model import Model

PyTree = Any


class RewardScorer:
    """Scores rollouts with a `Reward`. The scores are raw: gain, bias and missing end are applied by `Rollout.final`.

    Args:
        reward: what to score with.
        cache: the prompts of the rollouts.
        tokenizer: of the policy and of the reward model.
        mesh: the devices of the reward model.
        model: the reward model (with a scalar head); None if the reward has none.
        params: its parameters on the mesh.
        rows: responses in one forward pass of the reward model.
        seed: of the stage; random rewards depend on it.
        judge: the LM judge whose scores are `judge` in the expression.
        moderator: whose probability of a harmless response is `moderator` in it.
    """

    def __init__(
        self, reward: Reward, cache: Cache, tokenizer: Tokenizer, mesh: jax.sharding.Mesh, *,
        model: Model | None, params: PyTree, rows: int, seed: int = 0, judge: Judge | None = None,
        moderator: Moderator | None = None,
    ):  # fmt: skip
        self.reward, self.cache, self.tokenizer, self.mesh = reward, cache, tokenizer, mesh
        self.params, self.rows, self.seed, self.judge = params, rows, seed, judge
        self.moderator = moderator
        self.expression: ExpressionScorer | None = None
        if reward.verifier is not None:
            self.expression = ExpressionScorer(
                reward.verifier, seconds=reward.seconds, workers=reward.workers, model_scores=True
            )
        self._score = None
        if model is not None:
            self._score = compiler.scorer(functools.partial(score_responses, model), mesh, model.compute)

    def __call__(self, sampled: Rollout, step: int = 0, attempt: int = 0) -> dict[str, float]:
        """Sets `scores` and `components` of the rollout of `step`; returns metrics.

        Raises:
            UserError: a score is not a finite number.
        """
        metrics: dict[str, float] = {}
        scores = None if self._score is None else self._check_finite(self._model_scores(sampled), sampled)
        if self.expression is not None:
            began = time.perf_counter()
            judge_scores, harmless = None, None
            if self.moderator is not None:
                harmless = self._harmless(sampled, step)
                metrics["moderator_score"] = float(harmless.mean())
            if self.judge is not None:
                judge_scores, counts = self._judge_scores(sampled, step)
                metrics |= counts
            (result,) = score_rollout(
                [self.expression], sampled, self.cache, self.tokenizer, seed=self.seed, step=step, attempt=attempt,
                model=scores, judge=judge_scores, moderator=harmless, members=processes.of_mesh(self.mesh),
            )  # fmt: skip
            metrics |= {"verify_seconds": time.perf_counter() - began, "verify_busy_seconds": result.busy_seconds,
                        "verifier_timeouts": result.timed_out}  # fmt: skip
            sampled.components = dict(result.components)
            if len(sampled.components) + (scores is not None) + (judge_scores is not None) > 1:
                metrics |= {f"verdict/{name}": float(values.mean()) for name, values in sampled.components.items()}
                if scores is not None:
                    metrics["model_score"] = float(scores.mean())
                if judge_scores is not None:
                    metrics["judge_score"] = float(judge_scores.mean())
            scores = result.scores
        assert scores is not None
        sampled.scores = scores.astype(np.float32)
        return metrics

    def _model_scores(self, sampled: Rollout) -> np.ndarray:
        """The reward model's score of each response, float [B]."""
        tokens, lengths = rollout.join(sampled)
        seen = {} if sampled.seen is None else sampled.seen.columns(tokens)

        def score(params: PyTree, rows: dict[str, jax.Array]) -> jax.Array:
            assert self._score is not None
            return self._score(params, rows["tokens"], rows["lengths"], images_of(rows))

        columns = {"tokens": tokens, "lengths": lengths, **seen}
        return chunked.in_chunks(score, [self.params], columns, self.rows, self.mesh)

    def _check_finite(self, scores: np.ndarray, sampled: Rollout) -> np.ndarray:
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            record = self.cache.record(int(sampled.prompt_index[bad[0]]))
            raise UserError(
                f"reward: the reward model gave {scores[bad[0]]} for record {record['_record']} of "
                f"{record['_source']}; a reward must be a finite number (check the reward model's checkpoint)"
            )
        return scores

    def _harmless(self, sampled: Rollout, step: int) -> np.ndarray:
        """The moderator's probability that each response is harmless, float [B]; on every process."""
        assert self.moderator is not None
        texts, records = rollout.responses_and_records(
            sampled, self.cache, self.tokenizer, seed=self.seed, step=step
        )  # fmt: skip
        return harmless_scores(self.moderator, [record["_messages"] for record in records], texts)

    def _judge_scores(self, sampled: Rollout, step: int) -> tuple[np.ndarray, dict[str, int]]:
        """The LM judge's score of each response, float [B], and its counts; on every process."""
        assert self.judge is not None
        texts, records = rollout.responses_and_records(
            sampled, self.cache, self.tokenizer, seed=self.seed, step=step
        )  # fmt: skip
        return self.judge([record["_messages"] for record in records], texts, records, step)


def score_rollout(
    scorers: Sequence[ExpressionScorer], sampled: Rollout, cache: Cache, tokenizer: Tokenizer, *, seed: int = 0,
    step: int = 0, attempt: int = 0, model: np.ndarray | None = None, judge: np.ndarray | None = None,
    moderator: np.ndarray | None = None, members: Sequence[int] | None = None,
) -> list[Scores]:  # fmt: skip
    """The scores of a rollout under each expression; every process verifies its share of the prompts and gets all.

    `model`, `judge` and `moderator`, float [B], are the scores of these models, for expressions that use them.
    `members` are the processes that have the rollout and call this, by default all.
    """
    members = range(jax.process_count()) if members is None else members
    group = any(scorer.reads_group for scorer in scorers)
    texts, records = rollout.responses_and_records(
        sampled, cache, tokenizer, seed=seed, step=step, attempt=attempt, group=group
    )
    own = share_of(sampled.rows, sampled.samples, members.index(jax.process_index()), len(members))
    if own.start == own.stop:  # more processes than prompts
        none = [Scores(np.zeros(0), dict.fromkeys(scorer.names, np.zeros(0)), 0, 0.0) for scorer in scorers]
        return [_joined(result, own.start, members) for result in none]
    results = [
        scorer(
            texts[own], records[own], model=None if model is None else model[own],
            judge=None if judge is None else judge[own], moderator=None if moderator is None else moderator[own],
        )
        for scorer in scorers
    ]  # fmt: skip
    return results if len(members) == 1 else [_joined(result, own.start, members) for result in results]


def share_of(rows: int, samples: int, index: int, count: int) -> slice:
    """The rows that process `index` of `count` verifies: whole groups of `samples` rows, as many as others or one more
    or less."""
    groups = rows // samples
    first, last = (groups * place // count * samples for place in (index, index + 1))
    return slice(first, last)


def _joined(own: Scores, first: int, members: Sequence[int]) -> Scores:
    """The scores of all rows on each of `members`, from those of its share, which begins at row `first`."""
    value = {
        "scores": own.scores.tolist(), "components": {name: part.tolist() for name, part in own.components.items()},
        "timed_out": own.timed_out, "busy_seconds": own.busy_seconds,
        "reasons": {first + row: reason for row, reason in own.reasons.items()},
    }  # fmt: skip
    # Numbers in JSON are written so that they are read back exactly.
    shares = [json.loads(text) for text in processes.gather_bytes(json.dumps(value).encode(), members)]

    def column(parts: Iterable[list[float]]) -> np.ndarray:
        return np.array([number for part in parts for number in part], np.float64)

    return Scores(
        column(share["scores"] for share in shares),
        {name: column(share["components"][name] for share in shares) for name in own.components},
        sum(share["timed_out"] for share in shares),
        sum(share["busy_seconds"] for share in shares),
        {int(row): reason for share in shares for row, reason in share["reasons"].items()},
    )


def make_scorer(
    name: str, reward: Reward, workspace: Workspace, mesh: jax.sharding.Mesh, cache: Cache, tokenizer: Tokenizer,
    compute: Compute, rows: int, seed: int, new_tokens: int, decode_mesh: jax.sharding.Mesh | None = None,
) -> RewardScorer:  # fmt: skip
    """The scorer of stage `name`, with its frozen reward model in the compute dtype.

    `new_tokens` is the most tokens of a response, for which the reward model needs room behind the longest prompt.
    An LM judge generates its replies, so it is loaded onto `decode_mesh`, or onto `mesh` if that is None.
    """
    judge = None
    if reward.judge is not None:
        judge_config = reward.judge
        if judge_config.loaded is not None:
            judge_config = dataclasses.replace(judge_config, model=workspace.model(judge_config.loaded))
        judge = lm_judge.load(judge_config, decode_mesh or mesh, seed)
    moderator = None
    if reward.moderator is not None:
        moderator = load_moderator(workspace.model(reward.moderator).removeprefix("run:"), mesh=decode_mesh or mesh)
    models: dict[str, Any] = {"judge": judge, "moderator": moderator}
    if reward.model is None:
        return RewardScorer(reward, cache, tokenizer, mesh, model=None, params=None, rows=rows, seed=seed, **models)
    source = model_from(workspace.model(reward.model), mesh, compute=compute)
    check_context_length(name, source.config, cache, new_tokens)
    check_pictures(f"stage {name}: reward model", source.config, cache.manifest["spec"].get("vision"))
    with jax.set_mesh(mesh):
        return RewardScorer(
            reward, cache, tokenizer, mesh, model=source.decoder, params=source.frozen(mesh), rows=rows, seed=seed,
            **models,
        )  # fmt: skip
