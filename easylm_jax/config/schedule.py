"""The text of a learning-rate schedule, such as `2e-5 linear to 0 warmup 3%`, read into its parts."""

from __future__ import annotations

import dataclasses
import decimal
import math
from decimal import Decimal
from typing import Literal

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


def read_schedule(text: str | float) -> ScheduleText:
    """Checks the grammar of `text`; what needs the run's length waits for `train.schedule.resolve`."""
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
        if not math.isfinite(float(value)) or value < 0:
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
