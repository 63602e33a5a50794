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
from collections.abc import Callable
from decimal import Decimal
from typing import Literal

import jax
import jax.numpy as jnp

from models.errors import UserError

GRAMMAR = (
    "PEAK [constant | linear to END | cosine to END] [warmup AMOUNT [rounded down] [from START]] [horizon AMOUNT] "
    "[half-cosine AMOUNT], for example '2e-5 linear to 0 warmup 3%' or "
    "'3e-4 cosine to 10% warmup 2000 steps horizon 5e12 tokens'"
)
_SUFFIX = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_CLAUSES = ("constant", "linear", "cosine", "warmup", "horizon", "half-cosine")


@dataclasses.dataclass(frozen=True)
class Amount:
    """A stretch of training as written: `unit` is "steps", "tokens" or "%" (of the run's updates)."""

    value: Decimal
    unit: Literal["steps", "tokens", "%"]

    def steps(self, total_steps: int, tokens_per_step: int | None) -> Decimal:
        """The same stretch in updates, not rounded: a horizon in tokens seldom is a whole number of them."""
        if self.unit == "steps":
            return self.value
        if self.unit == "%":
            return self.value * total_steps / 100
        if not tokens_per_step:
            raise UserError(
                f"the learning rate counts {self.value} tokens, but this stage does not say how many tokens an update "
                "has; give the amount in steps"
            )
        return self.value / tokens_per_step


@dataclasses.dataclass(frozen=True)
class ScheduleText:
    """A schedule as written, checked for grammar but not yet tied to a run's length."""

    text: str
    peak: float
    kind: Literal["constant", "linear", "cosine"] = "constant"
    end: float = 0.0
    warmup: Amount | None = None
    warmup_from: float = 0.0
    rounded_down: bool = False
    horizon: Amount | None = None
    half_cosine: Amount | None = None

    def resolve(self, total_steps: int, tokens_per_step: int | None = None) -> Schedule:
        """The schedule in updates, for a run of `total_steps` of `tokens_per_step` tokens each."""

        def count(amount: Amount | None) -> float | None:
            return None if amount is None else float(amount.steps(total_steps, tokens_per_step))

        warmup = 0.0
        if self.warmup is not None:
            exact = self.warmup.steps(total_steps, tokens_per_step)
            if self.warmup.unit == "%":
                rounding = decimal.ROUND_FLOOR if self.rounded_down else decimal.ROUND_CEILING
                exact = exact.to_integral_value(rounding)
            warmup = float(exact)
        horizon = count(self.horizon)
        schedule = Schedule(
            peak=self.peak,
            kind=self.kind,
            end=self.end,
            warmup=warmup,
            warmup_from=self.warmup_from,
            horizon=float(total_steps) if horizon is None else horizon,
            half_cosine=count(self.half_cosine),
        )
        if self.kind != "constant" and schedule.warmup >= schedule.horizon:
            raise UserError(
                f"learning rate {self.text!r}: a warmup of {schedule.warmup:g} steps leaves nothing of a horizon of "
                f"{schedule.horizon:g} steps; shorten the warmup, or add 'horizon N steps'"
            )
        if schedule.half_cosine is not None and schedule.half_cosine <= schedule.half_way:
            raise UserError(
                f"learning rate {self.text!r}: half-cosine ends at step {schedule.half_cosine:g}, before it starts at "
                f"step {schedule.half_way:g}; it must lie beyond the horizon"
            )
        return schedule


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the trainer's step; every length is in updates, rates are absolute.

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


def parse_schedule(
    text: str | float, *, total_steps: int, tokens_per_step: int | None = None
) -> Callable[[int | jax.Array], jax.Array]:
    """The learning rate described by `text` (a plain number is constant) for a run of `total_steps` updates.

    `tokens_per_step` (tokens in one global batch) is needed where the text counts in tokens. Returns a function from
    the trainer's step to a float32 rate. Text that cannot be read raises `UserError` naming what is accepted.
    """
    return read_schedule(text).resolve(total_steps, tokens_per_step)


def read_schedule(text: str | float) -> ScheduleText:
    """Checks the grammar of `text`; what needs the run's length waits for `ScheduleText.resolve`."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise UserError(f"learning rate {text!r} is neither a number nor text; write {GRAMMAR}")
    return _Reader(str(text)).read()


class _Reader:
    """Reads the words of one schedule from left to right."""

    def __init__(self, text: str):
        self.text = text
        self.words = text.replace(", ", " ").rstrip(" ,").split()
        self.at = 0

    def fail(self, why: str) -> UserError:
        return UserError(f"learning rate {self.text!r}: {why}; write {GRAMMAR}")

    def next_is(self, *words: str) -> bool:
        """Consumes `words` if they come next."""
        end = self.at + len(words)
        found = [w.lower() for w in self.words[self.at : end]] == list(words)
        self.at = end if found else self.at
        return found

    def take(self, what: str) -> str:
        if self.at >= len(self.words):
            raise self.fail(f"{what} is missing at the end")
        self.at += 1
        return self.words[self.at - 1]

    def number(self, word: str, what: str) -> Decimal:
        try:
            value = Decimal(word)
        except decimal.InvalidOperation:
            raise self.fail(f"{what} {word!r} is not a number") from None
        if not value.is_finite() or value < 0:
            raise self.fail(f"{what} {word!r} must be finite and not negative")
        return value

    def rate(self, what: str, peak: float) -> float:
        """A learning rate, absolute or as a share of the peak."""
        word = self.take(what)
        value = float(self.number(word.removesuffix("%"), what))
        value = peak * value / 100 if word.endswith("%") else value
        if value > peak:
            raise self.fail(f"{what} {word} is above the peak {peak:g}")
        return value

    def amount(self, what: str) -> Amount:
        word = self.take(what)
        if word.endswith("%"):
            return Amount(self.number(word[:-1], what), "%")
        scale = _SUFFIX.get(word[-1].upper(), 1)
        value = self.number(word[:-1] if scale > 1 else word, what) * scale
        if self.next_is("tokens"):
            return Amount(value, "tokens")
        if not self.next_is("steps"):
            self.next_is("updates")
        return Amount(value, "steps")

    def read(self) -> ScheduleText:
        peak = float(self.number(self.take("the peak rate"), "the peak rate"))
        fields: dict = {}
        seen: set[str] = set()
        while self.at < len(self.words):
            word = self.take("a clause").lower()
            if word not in _CLAUSES:
                raise self.fail(f"{word!r} is not understood")
            clause = "the shape" if word in ("constant", "linear", "cosine") else word
            if clause in seen:
                raise self.fail(f"{clause} is given twice")
            seen.add(clause)
            fields |= self.clause(word, peak)
        schedule = ScheduleText(self.text, peak, **fields)
        if schedule.half_cosine is not None and schedule.kind != "cosine":
            raise self.fail("half-cosine continues a cosine and needs 'cosine to END'")
        if schedule.horizon is not None and schedule.kind == "constant":
            raise self.fail("a constant rate has no horizon")
        return schedule

    def clause(self, word: str, peak: float) -> dict:
        """The fields of `ScheduleText` that one clause sets."""
        if word == "constant":
            return {"kind": word}
        if word in ("linear", "cosine"):
            if not self.next_is("to"):
                raise self.fail(f"{word} must say where it ends, as in '{word} to 0'")
            return {"kind": word, "end": self.rate("the end rate", peak)}
        if word != "warmup":
            return {word.replace("-", "_"): self.amount(f"the {word}")}
        fields: dict = {"warmup": self.amount("the warmup")}
        if self.next_is("rounded", "down"):
            fields["rounded_down"] = True
            if fields["warmup"].unit != "%":
                raise self.fail("only a warmup in per cent is rounded")
        if self.next_is("from"):
            fields["warmup_from"] = self.rate("the warmup's start", peak)
        return fields
