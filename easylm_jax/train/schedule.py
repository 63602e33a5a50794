"""Learning-rate schedules, written in a recipe as short text: `"2e-5 linear to 0 warmup 3%"`.

    PEAK [constant | linear to END | cosine to END] [warmup AMOUNT [rounded down] [from START]]
         [horizon AMOUNT] [half-cosine AMOUNT]

END and START are a rate (`1e-6`) or a share of the peak (`10%`). AMOUNT is `2000 steps` (or just `2000`),
`8.39e9 tokens` (`5T tokens` and `8.39B tokens` too) or a share of the run's updates (`3%`).

- `warmup` climbs in a straight line from START (0 unless given; older OLMo runs start from 10 % of the peak). A
  percentage is rounded up to whole updates, as in Tülu 2.5 (3 % of 118 is 4); `rounded down` gives Tülu 3's count (3).
- `horizon` is where END is reached, by default the run's last update. It may lie beyond the run (OLMo 2 plans 5e12
  tokens and stops earlier) or before it (the rate then stays at END). Tülu 3's `final_lr_ratio r`, which stretches a
  linear schedule so that the run ends at r times the peak, is the same line as `linear to r`.
- `half-cosine` (OLMo 3) leaves the cosine where it has fallen half-way and stretches its second half to AMOUNT.

The rate is a function of the trainer's step alone: skipped updates do not hold it back, and a resumed run finds it
again without any state.
"""

from __future__ import annotations

import dataclasses
import decimal
import math
from typing import Literal

import jax
import jax.numpy as jnp

from easylm_jax.config.schedule import Amount, ScheduleText, read_schedule
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the trainer's step; every length is in updates, rates are absolute.

    It is an `optax.Schedule`, for whatever takes one. The shapes are those of `optax.schedules`, written out because
    optax's differ by 2e-7 and miss their ends by a rounding once they are compiled.

    Source of the formulas: OLMo 2 (arXiv 2501.00656) and its trainers; OLMo 3 for `half_cosine`.
    """

    peak: float
    kind: Literal["constant", "linear", "cosine"] = "constant"
    end: float = 0.0
    warmup: float = 0.0
    warmup_from: float = 0.0
    horizon: float = math.inf
    half_cosine: float | None = None

    @property
    def half_way(self) -> float:
        """The step at which the cosine has fallen half of its height: midway between warm-up and horizon."""
        return self.warmup + (self.horizon - self.warmup) / 2

    def __call__(self, step: int | jax.Array) -> jax.Array:
        """float32 learning rate at `step` (whole number, scalar or array, traced or not)."""
        t = jnp.asarray(step).astype(jnp.float32)
        rate = self._after_warmup(t)
        if self.warmup > 0:
            climb = self.warmup_from + (self.peak - self.warmup_from) * t / self.warmup
            rate = jnp.where(t < self.warmup, climb, rate)
        return rate.astype(jnp.float32)

    def _after_warmup(self, t: jax.Array) -> jax.Array:
        if self.kind == "constant":
            return jnp.full_like(t, self.peak)
        done = jnp.clip((t - self.warmup) / (self.horizon - self.warmup), 0.0, 1.0)
        if self.half_cosine is not None:
            second = 0.5 + 0.5 * (t - self.half_way) / (self.half_cosine - self.half_way)
            done = jnp.where(t < self.half_way, done, jnp.clip(second, 0.5, 1.0))
        # Written as a blend so that both ends are met exactly in float32: peak at 0 and `end` (even 0) at 1.
        left = 1.0 - done if self.kind == "linear" else 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        left = jnp.where(done >= 1.0, 0.0, left)
        return self.end + (self.peak - self.end) * left


def resolve(text: ScheduleText, total_steps: int, tokens_per_step: int | None = None) -> Schedule:
    """The schedule in updates, for a run of `total_steps` of `tokens_per_step` tokens each."""

    def count(amount: Amount | None) -> float | None:
        return None if amount is None else float(amount.steps(total_steps, tokens_per_step))

    warmup = 0.0
    if text.warmup is not None:
        exact = text.warmup.steps(total_steps, tokens_per_step)
        if text.warmup.unit == "%":
            rounding = decimal.ROUND_FLOOR if text.rounded_down else decimal.ROUND_CEILING
            exact = exact.to_integral_value(rounding)
        warmup = float(exact)
    horizon = count(text.horizon)
    schedule = Schedule(
        peak=text.peak,
        kind=text.kind,
        end=text.end,
        warmup=warmup,
        warmup_from=text.warmup_from,
        horizon=float(total_steps) if horizon is None else horizon,
        half_cosine=count(text.half_cosine),
    )
    if text.kind != "constant" and schedule.warmup >= schedule.horizon:
        raise UserError(
            f"learning rate {text.text!r}: a warmup of {schedule.warmup:g} steps leaves nothing of a horizon of "
            f"{schedule.horizon:g} steps; shorten the warmup, or add 'horizon N steps'"
        )
    if schedule.half_cosine is not None and schedule.half_cosine <= schedule.half_way:
        raise UserError(
            f"learning rate {text.text!r}: half-cosine ends at step {schedule.half_cosine:g}, before it starts at "
            f"step {schedule.half_way:g}; it must lie beyond the horizon"
        )
    return schedule


def parse_schedule(text: str | float, *, total_steps: int, tokens_per_step: int | None = None) -> Schedule:
    """The learning rate described by `text` (a plain number is constant) for a run of `total_steps` updates.

    `tokens_per_step` (tokens in one global batch) is needed where the text counts in tokens. Returns a function from
    the trainer's step to a float32 rate. Text that cannot be read raises `UserError` naming what is accepted.
    """
    return resolve(read_schedule(text), total_steps, tokens_per_step)
