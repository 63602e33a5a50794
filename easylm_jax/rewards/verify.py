"""Verdicts on a batch of responses: an expression's verifiers are run by the pool, then it is evaluated.

responses, records → pool of processes → each verifier's number → expression → scores
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from easylm_jax.config.expression import JUDGE, MODEL, Expression
from easylm_jax.rewards.pool import Pool
from easylm_jax.rewards.registry import verifier
from models.errors import UserError

LOOKUP = "easylm_jax.rewards.registry:verifier"  # how workers find verifiers
SECONDS = 10.0  # that one verifier may take for one response, unless a recipe says otherwise


@dataclasses.dataclass(frozen=True)
class Scores:
    """`scores` float64 [B]; `components`: what each verifier gave, float64 [B]; `timed_out`: how many calls were ended
    (they count as 0); `busy_seconds`: those of the workers, added up."""

    scores: np.ndarray
    components: Mapping[str, np.ndarray]
    timed_out: int
    busy_seconds: float


class ExpressionScorer:
    """Scores responses by an expression.

    Args:
        text: see `expression`. Its verifiers are looked up now, so an unknown one is told before any work. One with
            the attribute `reads_group` is given the texts of a prompt's other answers too (`_group`).
        seconds: what one call may take.
        workers: processes; left out, as many as the machine has cores to spare.
        scored: whether scores of models will be given (`model`, `judge`); elsewhere they cannot stand in the text.

    Raises:
        UserError: the text is no expression, or needs what is not there.
    """

    def __init__(
        self, text: str, *, seconds: float = SECONDS, workers: int | None = None, scored: bool = False
    ):  # fmt: skip
        self.expression = Expression(text)
        if (self.expression.uses_model or self.expression.uses_judge) and not scored:
            raise UserError(f"{text!r} has a model's score in it, which only a reward has; name verifiers here")
        self.seconds, self.workers = seconds, workers
        found = [verifier(call) for call in self.expression.calls]
        self.reads_group = any(getattr(one, "reads_group", False) for one in found)

    @property
    def names(self) -> tuple[str, ...]:
        """The verifiers, as they are called in `Scores.components`."""
        return tuple(map(shown, self.expression.calls))

    def __call__(
        self, responses: Sequence[str], records: Sequence[Mapping[str, Any]], *, model: np.ndarray | None = None,
        judge: np.ndarray | None = None,
    ) -> Scores:  # fmt: skip
        """`model` and `judge`, float [B], are needed where the expression has them.

        Raises:
            UserError: a record lacks what a verifier reads, or a score is no finite number.
        """
        calls = self.expression.calls
        components = {}
        timed_out, busy = 0, 0.0
        if calls:
            verdicts = pool(self.workers, self.seconds).verdicts(calls, responses, records)
            components = {shown(call): verdicts.values[:, column] for column, call in enumerate(calls)}
            timed_out, busy = int(verdicts.timed_out.sum()), verdicts.busy_seconds
        columns = {call: components[shown(call)] for call in calls}
        columns |= {name: column for name, column in ((MODEL, model), (JUDGE, judge)) if column is not None}
        scores = np.empty(len(responses))
        for row in range(len(responses)):
            scores[row] = self.expression({name: column[row] for name, column in columns.items()})
            if not math.isfinite(scores[row]):
                raise UserError(
                    f"reward: {self.expression.text!r} is {scores[row]} for record {records[row].get('_record')} of "
                    f"{records[row].get('_source')}; a reward must be a finite number"
                )
        return Scores(scores, components, timed_out, busy)


def shown(call: str) -> str:
    """A verifier call as it is written alone, for tables and metrics."""
    return call.replace("'", "", 2) if call.startswith("'") else call


@functools.cache
def pool(workers: int | None = None, seconds: float = SECONDS) -> Pool:
    """The pool of this process for these settings; it is closed when the process ends."""
    made = Pool(workers, seconds, LOOKUP)
    atexit.register(made.close)
    return made
