"""What responses are worth: a reward model's score, verifiers' verdicts, a judge model's opinion, put together."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from easylm_jax.checkpoint.load import check_same_tokenizer, model_from
from easylm_jax.config import Reward
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import Cache
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import rollout
from easylm_jax.decode.rollout import Rollout
from easylm_jax.objectives import score_responses
from easylm_jax.rewards import lm_judge
from easylm_jax.rewards.verify import ExpressionScorer, Scores
from easylm_jax.runtime import chunked, compiler
from models.config import Compute
from models.decoder import Decoder
from models.errors import UserError

PyTree = Any


class RewardScorer:
    """Scores of responses by a `Reward`. Raw: the trainer applies gain, bias and missing end.

    Args:
        reward: what to score with.
        seed: of the stage; random rewards are drawn from it.
        model: the reward model (with a scalar head) and its parameters on the mesh; None where there is none.
        rows: responses that the reward model is given at once.
        lm: the language model whose opinion stands in the expression as `judge`.
    """

    def __init__(
        self, reward: Reward, cache: Cache, tokenizer: Tokenizer, mesh: jax.sharding.Mesh, *,
        model: Decoder | None, params: PyTree, rows: int, seed: int = 0, lm: lm_judge.LMJudge | None = None,
    ):  # fmt: skip
        self.reward, self.cache, self.tokenizer, self.mesh = reward, cache, tokenizer, mesh
        self.params, self.rows, self.seed, self.lm = params, rows, seed, lm
        self.verify = None
        if reward.verifier is not None:
            self.verify = ExpressionScorer(reward.verifier, seconds=reward.seconds, workers=reward.workers, scored=True)
        self._score = None
        if model is not None:
            self._score = compiler.scorer(functools.partial(score_responses, model), mesh, model.compute)

    def __call__(self, made: Rollout, number: int = 0, part: int = 0) -> dict[str, float]:
        """Fills in `scores` and `parts` of rollout `number` (or a part of it); returns what to log of it.

        Raises:
            UserError: a score is no finite number.
        """
        line: dict[str, float] = {}
        scores = None if self._score is None else self._finite(self._model_scores(made), made)
        if self.verify is not None:
            began = time.perf_counter()
            opinion = None
            if self.lm is not None:
                opinion, told = self._opinion(made, number)
                line |= told
            verified = self._verified(made, number, part, scores, opinion)
            line |= {"verify_seconds": time.perf_counter() - began, "verify_busy_seconds": verified.busy_seconds,
                     "verifier_timeouts": verified.timed_out}  # fmt: skip
            made.components = dict(verified.components)
            if len(made.components) + (scores is not None) + (opinion is not None) > 1:
                line |= {f"verdict/{name}": float(values.mean()) for name, values in made.components.items()}
                if scores is not None:
                    line["model_score"] = float(scores.mean())
                if opinion is not None:
                    line["judge_score"] = float(opinion.mean())
            scores = verified.scores
        assert scores is not None
        made.scores = scores.astype(np.float32)
        return line

    def _model_scores(self, made: Rollout) -> np.ndarray:
        """The reward model's score of each response, float [B]."""
        tokens, lengths = rollout.join(made)

        def score(params: PyTree, rows: dict[str, jax.Array]) -> jax.Array:
            assert self._score is not None
            return self._score(params, rows["tokens"], rows["lengths"])

        return chunked.in_chunks(score, [self.params], {"tokens": tokens, "lengths": lengths}, self.rows, self.mesh)

    def _finite(self, scores: np.ndarray, made: Rollout) -> np.ndarray:
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            record = self.cache.record(int(made.prompt_index[bad[0]]))
            raise UserError(
                f"reward: the reward model gave {scores[bad[0]]} for record {record['_record']} of "
                f"{record['_source']}; a reward must be a finite number (look at the reward model's own checkpoints)"
            )
        return scores

    def _opinion(self, made: Rollout, number: int) -> tuple[np.ndarray, dict[str, int]]:
        """What the language model thinks of each response, float [B], on every process."""
        assert self.lm is not None
        texts, records = rollout.answers(made, self.cache, self.tokenizer, seed=self.seed, number=number)
        return self.lm([record["_messages"] for record in records], texts, records, number)

    def _verified(
        self, made: Rollout, number: int, part: int, model: np.ndarray | None, judge: np.ndarray | None
    ) -> Scores:  # fmt: skip
        assert self.verify is not None
        (found,) = verified(
            [self.verify], made, self.cache, self.tokenizer, seed=self.seed, number=number, part=part, model=model,
            judge=judge,
        )  # fmt: skip
        return found


def verified(
    scorers: Sequence[ExpressionScorer], made: Rollout, cache: Cache, tokenizer: Tokenizer, *, seed: int = 0,
    number: int = 0, part: int = 0, model: np.ndarray | None = None, judge: np.ndarray | None = None,
) -> list[Scores]:  # fmt: skip
    """What each of these expressions says of a rollout. One process's pool gives the verdicts, and the others take them
    from it."""
    found: list[Scores] = []
    if jax.process_index() == 0:
        group = any(scorer.reads_group for scorer in scorers)
        texts, records = rollout.answers(made, cache, tokenizer, seed=seed, number=number, part=part, group=group)
        found = [scorer(texts, records, model=model, judge=judge) for scorer in scorers]
    if jax.process_count() == 1:
        return found
    own = found or [None] * len(scorers)
    return [_broadcast(scorer, one, made.rows) for scorer, one in zip(scorers, own, strict=True)]


def _broadcast(scorer: ExpressionScorer, found: Scores | None, rows: int) -> Scores:
    from jax.experimental import multihost_utils

    names = scorer.names
    table = np.zeros((len(names) + 1, rows))
    counts = np.zeros(2)
    if found is not None:
        table[0] = found.scores
        for place, name in enumerate(names):
            table[place + 1] = found.components[name]
        counts[:] = found.timed_out, found.busy_seconds
    # As whole words of 32 bits: a transfer may round float64.
    words = multihost_utils.broadcast_one_to_all(np.concatenate([table.reshape(-1), counts]).view(np.uint32))
    numbers = np.ascontiguousarray(np.asarray(words)).view(np.float64)
    table = numbers[:-2].reshape(table.shape)
    parts = {name: table[place + 1] for place, name in enumerate(names)}
    return Scores(table[0], parts, int(numbers[-2]), float(numbers[-1]))


def make_scorer(
    name: str, reward: Reward, workspace: Workspace, mesh: jax.sharding.Mesh, cache: Cache, tokenizer: Tokenizer,
    compute: Compute, rows: int, seed: int, decodes: jax.sharding.Mesh | None = None,
) -> RewardScorer:  # fmt: skip
    """What scores the answers of stage `name`; its reward model is frozen in the type that is computed in.

    A language model that judges writes, so it lies on the mesh `decodes`, where that is another than `mesh`.
    """
    lm = None
    if reward.judge is not None:
        judge = dataclasses.replace(reward.judge, model=workspace.model(reward.judge.model))
        lm = lm_judge.load(judge, decodes or mesh, seed)
    if reward.model is None:
        return RewardScorer(reward, cache, tokenizer, mesh, model=None, params=None, rows=rows, seed=seed, lm=lm)
    source = model_from(workspace.model(reward.model), mesh, compute=compute)
    if not source.config.scalar_head:
        raise UserError(f"stage {name}: {reward.model} has no scalar head, so it is no reward model")
    check_same_tokenizer(name, "reward model", reward.model, source, tokenizer)
    with jax.set_mesh(mesh):
        return RewardScorer(
            reward, cache, tokenizer, mesh, model=source.decoder, params=source.frozen(mesh), rows=rows, seed=seed,
            lm=lm,
        )  # fmt: skip
