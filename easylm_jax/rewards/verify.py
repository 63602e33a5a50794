"""Scores a batch of responses by a reward expression: a pool runs its verifiers, then the expression is evaluated.

responses, records → pool of worker processes → the score of each verifier → expression → scores
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from easylm_jax.config.expression import JUDGE, MODEL, MODERATOR, Expression
from easylm_jax.rewards.pool import Pool
from easylm_jax.rewards.registry import verifier
from models.errors import UserError

LOOKUP = "easylm_jax.rewards.registry:verifier"  # how worker processes look verifiers up
SECONDS = 10.0  # default limit on the CPU time of one verifier call


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a batch.

    Attributes:
        scores: float64 [B].
        components: the score of each verifier by its call, float64 [B].
        timed_out: number of verifier calls that were stopped; their score is 0.
        busy_seconds: time of the calls, summed over the workers.
        reasons: the reasons that the verifiers gave for a row's scores, by row.
    """

    scores: np.ndarray
    components: Mapping[str, np.ndarray]
    timed_out: int
    busy_seconds: float
    reasons: Mapping[int, str] = dataclasses.field(default_factory=dict)


class ExpressionScorer:
    """Scores responses by a reward expression.

    Args:
        text: see `config.expression`. Its verifiers are looked up at once, so an unknown one is an error before any
            work. A verifier with the attribute `reads_group` receives all responses to the same prompt (`_group`).
        seconds: limit on the CPU time of one verifier call.
        workers: worker processes; by default one less than the cores, at most 16.
        model_scores: whether the caller passes scores of models; otherwise their names
            (`config.expression.MODELS`) are errors in the text.

    Raises:
        UserError: the text is not a valid expression, names an unknown verifier, or uses model scores without
            `model_scores`.
    """

    def __init__(
        self, text: str, *, seconds: float = SECONDS, workers: int | None = None, model_scores: bool = False
    ):  # fmt: skip
        self.expression = Expression(text)
        used = self.expression.uses_model, self.expression.uses_judge, self.expression.uses_moderator
        if any(used) and not model_scores:
            raise UserError(f"{text!r} uses a model's score, which only a reward has; use verifiers only here")
        self.seconds, self.workers = seconds, workers
        verifiers = [verifier(call) for call in self.expression.calls]
        self.reads_group = any(getattr(function, "reads_group", False) for function in verifiers)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the verifiers in `Scores.components`."""
        return tuple(map(display_name, self.expression.calls))

    def __call__(
        self, responses: Sequence[str], records: Sequence[Mapping[str, Any]], *, model: np.ndarray | None = None,
        judge: np.ndarray | None = None, moderator: np.ndarray | None = None,
    ) -> Scores:  # fmt: skip
        """Scores responses, given the record of each one's prompt.

        `model`, `judge` and `moderator`, float [B], are required if the expression uses them.

        Raises:
            UserError: a record lacks a column that a verifier reads, or a score is not a finite number.
        """
        calls = self.expression.calls
        components: dict[str, np.ndarray] = {}
        timed_out, busy = 0, 0.0
        reasons: dict[int, str] = {}
        if calls:
            verdicts = shared_pool(self.workers, self.seconds).verdicts(calls, responses, records)
            components = {display_name(call): verdicts.values[:, column] for column, call in enumerate(calls)}
            timed_out, busy = int(verdicts.timed_out.sum()), verdicts.busy_seconds
            for row, column in sorted(verdicts.reasons):
                name = f"{display_name(calls[column])}: " if len(calls) > 1 else ""
                earlier = f"{reasons[row]}; " if row in reasons else ""
                reasons[row] = f"{earlier}{name}{verdicts.reasons[row, column]}"
        columns = {call: components[display_name(call)] for call in calls}
        given = ((MODEL, model), (JUDGE, judge), (MODERATOR, moderator))
        columns |= {name: column for name, column in given if column is not None}
        scores = np.empty(len(responses))
        for row in range(len(responses)):
            scores[row] = self.expression({name: column[row] for name, column in columns.items()})
            if not math.isfinite(scores[row]):
                raise UserError(
                    f"reward: {self.expression.text!r} is {scores[row]} for record {records[row].get('_record')} of "
                    f"{records[row].get('_source')}; a reward must be a finite number"
                )
        return Scores(scores, components, timed_out, busy, reasons)


def display_name(call: str) -> str:
    """The name of a verifier call in tables and metrics: without the quotes around `module:function`."""
    return call.replace("'", "", 2) if call.startswith("'") else call


@functools.cache
def shared_pool(workers: int | None = None, seconds: float = SECONDS) -> Pool:
    """The pool of this process with these settings; it is closed when the process ends."""
    pool = Pool(workers, seconds, LOOKUP)
    atexit.register(pool.close)
    return pool
