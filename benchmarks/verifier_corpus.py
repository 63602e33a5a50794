"""Generated responses for benchmarks/verifiers.py; half of them are correct, and every seed gives others.

Nothing here imports more than the standard library: peers read it too.
"""

from __future__ import annotations

import random
from fractions import Fraction

VERIFIERS = ("gsm8k", "math", "math(style='spurious')", "python", "no_repetition")
_TEXT = "we note that the sum of both sides then gives a value which can be written so and as before it follows"
_WORDS = _TEXT.split()


def corpus(seed: int, count: int, words: int = 200) -> list[tuple[str, str, bool]]:
    """(response, gold answer, whether it is correct) for `count` responses of about `words` words."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        gold, same, other = _answer(draw)
        right = draw.random() < 0.5
        text = " ".join(draw.choices(_WORDS, k=draw.randrange(words // 2, 3 * words // 2)))
        steps = f"${draw.randrange(99)} + {draw.randrange(99)}x = {draw.randrange(99)}$"
        answer = f"so the answer is $\\boxed{{{same if right else other}}}$."
        made.append((f"{text} {steps}, {text[: len(text) // 3]} {answer}", gold, right))
    return made


def _answer(draw: random.Random) -> tuple[str, str, str]:
    """A gold answer as in sets of competition problems, an equivalent form of it, and a wrong answer."""
    a, b, c = draw.randrange(2, 999), draw.randrange(2, 99), draw.randrange(2, 30)
    kind = draw.choices(("whole", "fraction", "root", "polynomial", "pair", "decimal"), (55, 15, 8, 7, 8, 7))[0]
    if kind == "whole":
        return str(a * b), draw.choice([str(a * b), f"{a * b:,}", f"{a * b}.0", f"x = {a * b}"]), str(a * b + 1)
    if kind == "fraction":
        value = Fraction(a, b + a)
        top, bottom = value.numerator, value.denominator
        return f"\\frac{{{top}}}{{{bottom}}}", f"\\dfrac{{{2 * top}}}{{{2 * bottom}}}", f"\\frac{{{bottom}}}{{{top}}}"
    if kind == "root":
        return f"{c}\\sqrt{{{b}}}", f"\\sqrt{{{c * c * b}}}", f"{c + 1}\\sqrt{{{b}}}"
    if kind == "polynomial":
        return f"(x+{c})(x-{b})", f"x^2 + {c - b}x - {b * c}".replace("+ -", "- "), f"(x-{c})(x-{b})"
    if kind == "pair":
        return f"\\left({a}, \\frac{{1}}{{{b}}}\\right)", f"({a},\\tfrac1{{{b}}})", f"(\\frac{{1}}{{{b}}}, {a})"
    return f"{a / 8}", f"\\frac{{{a}}}{{8}}", f"{a / 8 + 1}"
