"""The reinforcement learning loop: rollout, scores, advantages, updates.

    batch_at(step) → prompts → engine → responses → scores → log-probabilities, values → advantages
                   → updates of the policy (and the value model) → metrics line → checkpoint

One step is one rollout with all its updates, and every step can be saved: prompts are a pure function of the step, and
responses of (parameters, seed, step), so a killed run repeats the same rollouts and resumes bit for bit. PPO, GRPO and
online DPO differ only in how scores become columns of a batch (`advantages.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from easylm_jax.data.loader import permutation
from easylm_jax.decode import rollout
from easylm_jax.decode.rollout import Rollout
from easylm_jax.objectives import adaptive_kl, base
from easylm_jax.rewards.pictures import shown
from easylm_jax.rewards.responses import scored_responses
from easylm_jax.rewards.scorer import score_rollout
from easylm_jax.rewards.verdict import label_of
from easylm_jax.rewards.verify import ExpressionScorer, Scores
from easylm_jax.runtime import chunked, processes, sharding
from easylm_jax.runtime.files import write_lines
from easylm_jax.train.loop import Loop, Metrics, describe_mesh
from easylm_jax.train.rl import advantages
from easylm_jax.train.rl.collector import AsyncCollector, CollectedRollout, RolloutCollector, on_devices
from easylm_jax.train.rl.job import RLState, RolloutJob
from easylm_jax.train.rl.memory import memory_of
from easylm_jax.train.step import State
from models.model import Model

PyTree = Any
Columns = dict[str, np.ndarray]


def reinforce(job: RolloutJob) -> Metrics:
    """Runs a job from its latest checkpoint (or from scratch) to its last step; returns the final metrics."""
    return RolloutLoop(job).run()


@dataclasses.dataclass
class _Pending:
    """A dispatched step: `metrics` of the rollout, and of its `updates`, which may still be on the device."""

    metrics: Metrics
    updates: list[dict[str, jax.Array]]
    began: float
    rollout_seconds: float  # until the updates could begin


class RolloutLoop(Loop):
    """Trains on each rollout as it is collected, or on rollouts collected ahead of the updates (`AsyncCollector`)."""

    job: RolloutJob

    def __init__(self, job: RolloutJob):
        super().__init__(job)
        stage, mesh = job.stage, job.mesh
        self.model: Model = job.policy.model
        self.score_rows = stage.score_rows
        self.token_scores, self.policy_of = job.programs.token_scores, job.programs.policy_of
        if job.value is not None:
            self.values = job.programs.values
        self.engine = job.generator.engine
        self.collector = RolloutCollector(stage, job.generator, job.scorer, job.loader, job.scorer.mesh)
        self.async_collector: AsyncCollector | None = None
        self.trains = job.exchange is None or job.exchange.trains
        self.batches = advantages.make_batch_builder(stage, mesh, self.model.config)
        self.programs: dict[tuple[int, ...], dict[str, Any]] = {}
        self.check_scorer = ExpressionScorer(stage.check, seconds=stage.reward.seconds) if stage.check else None

    # Before the first step

    def prepare(self, state: RLState, start: int) -> None:
        """Compiles the updates for the longest rows, prints the memory that the stage needs on a device, and evaluates
        the policy before its first update."""
        job, stage = self.job, self.job.stage
        longest = int(np.asarray(job.loader.cache.columns["lengths"]).max()) + stage.sampling.max_new_tokens
        if self.trains:
            with self.monitor.phase("compile"):
                programs = self.compiled(self.batches.abstract(rollout.bucket(longest)))
            self.monitor.message(
                f"mesh {describe_mesh(job.mesh)}; {stage.batch} prompts x {stage.samples} responses per rollout, "
                f"{stage.updates} updates of {stage.update_rows}"
            )
            self.monitor.message(str(memory_of(job, self.abstract, self.engine, programs, longest)))
        if start == 0 and job.validates:  # before rollouts are submitted, which may run beside it
            from_itself = stage.reference in (None, stage.init)
            self.validate_first(state, {"kl": 0.0} if from_itself else {})
        self.prepare_rollouts(state, start)

    def prepare_rollouts(self, state: RLState, start: int) -> None:
        """Submits the rollouts after step `start` that are sampled from stale policies."""
        if self.job.stage.asynchronous:
            exchange = self.job.exchange
            used = int(state.prompt_batches_used) if self.trains else 0
            if exchange is not None:
                used = exchange.from_trainers(used)
            own_devices = self.job.stage.rollout_devices is not None
            one_device = self.job.mesh.size == 1
            alone = jax.process_count() == 1
            self.async_collector = AsyncCollector(
                self.collector, used, overlapping=alone and (own_devices or one_device)
            )
            for step, policy in enumerate(state.stale_policies, start + 1):
                self._submit(policy if self.trains else None, step)

    def close(self) -> None:
        if self.async_collector is not None:
            self.async_collector.close()

    def _submit(self, policy: PyTree | None, step: int) -> None:
        """Submits the rollout of `step` with this policy, which is moved to the devices that sample rollouts."""
        assert self.async_collector is not None
        if step <= self.job.steps:
            moved = self._moved(policy)
            if self.job.exchange is None or not self.trains:
                self.async_collector.submit(moved, step)

    def _moved(self, policy: PyTree | None) -> PyTree:
        """A policy on the devices that sample rollouts; None on processes that do not train."""
        exchange = self.job.exchange
        return jax.device_put(policy, self.job.rollout_layout) if exchange is None else exchange.policy(policy)

    def compiled(self, batch: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """The compiled updates for batches of these shapes."""
        key = tuple(batch["tokens"].shape)
        if key not in self.programs:
            states = {"policy": self.abstract.policy, "value": self.abstract.value}
            self.programs[key] = {
                name: self.job.programs.update(name, state, self.job.frozen, batch).compile()
                for name, state in states.items() if state is not None
            }  # fmt: skip
        return self.programs[key]

    # A step

    def advance(self, state: RLState, step: int) -> tuple[RLState, _Pending]:
        began = time.perf_counter()
        if not self.trains:
            self._sample_ahead(step)
            return state, _Pending({}, [], began, 0.0)
        collected, columns, stale = self._collect(state, step)
        with self.monitor.phase("reward", step):
            sampled = collected.rollout
            rows, metrics = self.batches.rows(sampled, columns, float(state.kl))
            metrics |= {**collected.metrics, **self._rollout_metrics(sampled, columns)}
            metrics["kl_coefficient"] = float(state.kl)
            self._save_samples(step, sampled, columns)
        rollout_seconds = time.perf_counter() - began
        state, updates = self._updates(state, rows, step)
        kl = self._next_kl(state.kl, metrics["kl"])
        # With the shardings of a restored state, so that both run the same compiled programs.
        layout = self.job.layout
        used = sharding.everywhere(np.int32(collected.prompt_batches_used), layout.prompt_batches_used)
        state = state._replace(
            step=sharding.everywhere(np.int32(step), layout.step), prompt_batches_used=used, kl=kl, stale_policies=stale
        )
        return state, _Pending(metrics, updates, began, rollout_seconds)

    def _sample_ahead(self, step: int) -> None:
        """A step of a process that only samples: hands over its rollout, gets the newest policy, and collects the next
        rollout while the others train."""
        job, collector = self.job, self.async_collector
        assert job.exchange is not None and collector is not None
        with self.monitor.phase("rollout", step):
            collected = collector.take(step)
            self._submit(None, step + job.stage.asynchronous)
            job.exchange.from_samplers(collected)
            if step < job.steps:
                collector.collect_now(step + 1)

    def _collect(self, state: RLState, step: int) -> tuple[CollectedRollout, Columns, tuple[PyTree, ...]]:
        """The rollout of a step, its columns, and the stale policies that sample the next rollouts.

        The parameters that sample the rollout are a copy if adapters are merged or kernels cast; it is freed when this
        returns, unless it is kept as a stale policy.
        """
        job, collector = self.job, self.async_collector
        policy = self.policy_of(state.params, job.frozen)
        stale: tuple[PyTree, ...] = ()
        began = time.perf_counter()
        with self.monitor.phase("rollout", step):
            if collector is None:
                collected = self.collector.collect(policy, step, int(state.prompt_batches_used))
            else:
                self._submit(policy, step + job.stage.asynchronous)
                collected = collector.take(step) if job.exchange is None else job.exchange.from_samplers(None)
                stale = (*state.stale_policies[1:], policy)
                collected.metrics["wait_seconds"] = time.perf_counter() - began
                collected.metrics["staleness"] = min(step - 1, job.stage.asynchronous)
        with self.monitor.phase("reward", step):
            began = time.perf_counter()
            columns = self._forward_columns(rollout.columns_of(collected.rollout), policy, state.value)
            scoring = 0.0 if collector is not None else collected.metrics["judge_seconds"]
            collected.metrics["score_seconds"] = scoring + time.perf_counter() - began
        return collected, columns, stale

    def _forward_columns(self, columns: Columns, policy: PyTree, value: State | None) -> Columns:
        """The columns with the log-probabilities of the policy and the reference and the values of every target."""
        in_chunks = functools.partial(chunked.in_chunks, size=self.score_rows, mesh=self.job.mesh)
        inputs = {name: columns[name] for name in (*base.FORWARD, *base.IMAGES) if name in columns}
        if self.job.stage.router_replay:
            own, _ = in_chunks(self.token_scores, [policy], inputs)
            columns = {**columns, "own_logprobs": own}
            old, entropy = in_chunks(self.token_scores, [policy], {**inputs, "routing": columns["routing"]})
        else:
            old, entropy = in_chunks(self.token_scores, [policy], inputs)
        reference, _ = in_chunks(self.token_scores, [self.job.reference], inputs)
        columns = {**columns, "old_logprobs": old, "entropy": entropy, "reference_logprobs": reference}
        if value is not None:
            columns["old_values"] = in_chunks(self.values, [value.params], inputs)
        return columns

    def _updates(self, state: RLState, rows: Columns, step: int) -> tuple[RLState, list[dict[str, jax.Array]]]:
        """All updates on one rollout: every mini-batch of every epoch. Returns the metrics of each update."""
        stage, size = self.job.stage, self.batches.update_rows
        update_metrics = []
        for epoch in range(stage.rollout_epochs):
            order = self._order(len(rows["tokens"]), step, epoch)
            for chunk in chunked.chunks(len(order), size):
                mini_batch = {name: array[order[chunk]] for name, array in rows.items()}
                if stage.recomputes:
                    policy = self.policy_of(state.params, self.job.frozen)
                    mini_batch = self._forward_columns(mini_batch, policy, state.value)
                    mini_batch, _ = self.batches.recompute(mini_batch, float(state.kl))
                state, metrics = self._update(state, self.batches.batch(mini_batch), step)
                update_metrics.append(metrics)
        return state, update_metrics

    def _order(self, count: int, step: int, epoch: int) -> np.ndarray:
        """A new shuffle of the rows for each epoch, which spreads the responses to a prompt over updates.

        With `recomputes` (compat) the rows keep their order.
        """
        stage = self.job.stage
        if stage.recomputes:
            return np.arange(count)
        return permutation(count, self.job.fingerprint, stage.seed, step, epoch)

    def _update(self, state: RLState, rows: Columns, step: int) -> tuple[RLState, dict[str, jax.Array]]:
        """One update of the value model and, after its warm-up, of the policy."""
        job, stage = self.job, self.job.stage
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in rows.items()}
        if tuple(rows["tokens"].shape) not in self.programs:
            with self.monitor.phase("compile", step):
                self.compiled(shapes)
        programs = self.compiled(shapes)
        with self.monitor.phase("step", step):
            batch = chunked.place_rows(rows, job.mesh)
            metrics: dict[str, jax.Array] = {}
            if state.value is not None:
                value, info = programs["value"](state.value, batch, {})
                state = state._replace(value=value)
                metrics |= {f"value_{name}" if _of_optimizer(name) else name: x for name, x in info.items()}
                metrics["value_total"] = metrics.pop("loss")
            if step <= stage.value_warmup:
                return state, metrics
            policy, info = programs["policy"](state.policy, batch, job.frozen)
            state = state._replace(updates=policy.step, params=policy.params, opt=policy.opt, rng=policy.rng)
            return state, {**metrics, **info}

    def _next_kl(self, kl: jax.Array, observed: float) -> jax.Array:
        stage = self.job.stage
        if stage.adaptive_kl_target is None:
            return kl
        new = adaptive_kl(np.float32(jax.device_get(kl)), observed, target=stage.adaptive_kl_target)
        return sharding.everywhere(np.float32(new), self.job.layout.kl)

    # Metrics

    def _rollout_metrics(self, sampled: Rollout, columns: Columns) -> Metrics:
        """The metrics of a rollout; `kl` is the sum over a response, in nats."""
        mask = columns["mask"] > 0
        tokens = mask.sum()
        gap = np.where(mask, columns["old_logprobs"] - self._sampler_logprobs(columns), 0.0)
        divergence = np.where(mask, columns["old_logprobs"] - columns["reference_logprobs"], 0.0)
        replayed = {}
        if "own_logprobs" in columns:  # how large the gap would be if the trainer routed tokens anew
            own = np.where(mask, columns["own_logprobs"] - self._sampler_logprobs(columns), 0.0)
            replayed = {"sampler_gap_without_replay": float(np.abs(own).sum() / tokens)}
        return {
            **replayed,
            "score": float(sampled.scores.mean()),
            "score_std": float(sampled.scores.std()),
            "ended": float(sampled.ended.mean()),
            "length": float(sampled.lengths.mean()),
            "kl": float(divergence.sum(axis=1).mean()),
            "kl_per_token": float(divergence.sum() / tokens),
            "entropy": float(sampled.entropy.sum() / tokens),
            "token_probability": float(np.exp(columns["old_logprobs"][mask]).mean()),
            "sampler_gap": float(np.abs(gap).sum() / tokens),
            "sampler_gap_max": float(np.abs(gap).max()),
        }

    def _sampler_logprobs(self, columns: Columns) -> np.ndarray:
        """The sampler's log-probabilities at the trainer's temperature, which should equal the trainer's."""
        stage = self.job.stage
        if stage.temperature == 1.0:
            return columns["untruncated_logprobs"]
        return columns["sampler_logprobs"]

    def read(self, pending: _Pending) -> Metrics:
        if not self.trains:
            return {}
        updates = jax.device_get(pending.updates)
        seconds = time.perf_counter() - pending.began
        names = list(dict.fromkeys(name for update in updates for name in update))
        values = {name: [float(update[name]) for update in updates if name in update] for name in names}
        metrics = {name: _REDUCTIONS.get(name, _mean)(each) for name, each in values.items()}
        tokens = int(sum(values.get("tokens", [0])))
        self.tokens_seen += tokens
        metrics.setdefault("loss", metrics.get("value_total", 0.0))
        return {
            **metrics, **pending.metrics, "tokens": self.tokens_seen, "seconds": seconds,
            "update_seconds": seconds - pending.rollout_seconds, "tokens_per_second": tokens / seconds,
        }  # fmt: skip

    def check(self, metrics: Metrics, step: int) -> None:
        if "skipped_in_row" in metrics:
            self.job.policy.optimizer.check(metrics, step)
        if self.job.value is not None and self.trains:
            names = {"loss": "value_total", "grad_norm": "value_grad_norm", "skipped_in_row": "value_skipped_in_row"}
            self.job.value.optimizer.check({name: metrics[prefixed] for name, prefixed in names.items()}, step)

    def trained(self, state: RLState) -> Mapping[str, State]:
        if not self.trains:
            return {}
        return {"policy": state.policy} | ({} if state.value is None else {"value model": state.value})

    def validate(self, state: RLState, step: int) -> tuple[dict[str, float], str]:
        """Scores greedy responses to the held-out prompts with the stage's `check` expression, and keeps them all in
        `samples/held_out/<step>.jsonl`."""
        job, stage = self.job, self.job.stage
        assert job.held_out is not None
        policy = self._moved(self.policy_of(state.params, job.frozen) if self.trains else None)
        if job.exchange is None:
            sampled, result = self._held_out_responses(policy)
        else:
            sampled, result = job.exchange.from_samplers(None if self.trains else self._held_out_responses(policy))
        if processes.is_first_process() and stage.keep_samples:
            responses = scored_responses(sampled, job.held_out, job.tokenizer, result)
            write_lines(job.folder / "samples" / "held_out" / f"{step}.jsonl", responses)
        scores = result.scores
        stderr = float(scores.std(ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else 0.0
        means = {"score": float(scores.mean()), "stderr": stderr, "prompts": float(len(scores))}
        return means, f"score {means['score']:.3f} ± {stderr:.3f} (standard error, {len(scores)} prompts)"

    def _held_out_responses(self, policy: PyTree) -> tuple[Rollout, Scores]:
        """Greedy responses to the held-out prompts and their scores, made on the devices that sample rollouts."""
        job = self.job
        assert job.held_out is not None and self.check_scorer is not None
        mesh, held_out = self.collector.mesh, job.held_out
        batch = held_out.read(np.arange(held_out.rows))

        def sample() -> Rollout:
            with on_devices(mesh):
                return job.generator.sample(policy, held_out, batch, greedy=True)

        # Two threads must not run programs on several devices at once.
        sampled = sample() if self.async_collector is None else self.async_collector.between_rollouts(sample)
        (result,) = score_rollout(
            [self.check_scorer], sampled, held_out, job.tokenizer, seed=job.stage.seed, members=processes.of_mesh(mesh)
        )
        return sampled, result

    def _save_samples(self, step: int, sampled: Rollout, columns: Columns) -> None:
        """Writes a few responses of about every tenth rollout to `samples/<step>.jsonl`."""
        job, stage = self.job, self.job.stage
        due = step in (1, job.steps) or step % max(1, job.steps // 10) == 0
        if not (due and stage.keep_samples and processes.is_first_process()):
            return
        divergence = ((columns["old_logprobs"] - columns["reference_logprobs"]) * columns["mask"]).sum(axis=1)
        rows = range(0, sampled.rows, max(1, sampled.rows // stage.keep_samples))[: stage.keep_samples]
        records = (
            {
                "prompt": job.tokenizer.decode(sampled.prompts[row, : sampled.prompt_lengths[row]].tolist()),
                "label": label_of(record), "response": text, "score": float(sampled.scores[row]),
                "ended": bool(sampled.ended[row]), "kl": float(divergence[row]), **shown(record, text),
            }
            for row in rows
            for record in [job.loader.cache.record(int(sampled.prompt_index[row]))]
            for text in [rollout.text_of(sampled, row, job.tokenizer)]
        )  # fmt: skip
        write_lines(job.folder / "samples" / f"{step}.jsonl", records)


_OPTIMIZER = (
    "lr", "grad_norm", "param_norm", "skipped", "skipped_total", "skipped_in_row", "loss_deviation",
    "grad_norm_deviation", "update_norm",
)  # fmt: skip


def _of_optimizer(name: str) -> bool:
    """Whether a metric is one that `Optimizer.update` reports; groups have their rates as `lr_<group>`."""
    return name in _OPTIMIZER or name.startswith("lr_")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# How a metric of several updates becomes one number of the step; the mean for all others.
_REDUCTIONS: dict[str, Callable[[list[float]], float]] = {
    **{
        prefix + name: (lambda values: values[-1])
        for prefix in ("", "value_")
        for name in ("lr", "param_norm", "skipped_total", "skipped_in_row")
    },
    "skipped": sum,
    "value_skipped": sum,
}
