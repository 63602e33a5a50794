"""Ways to write an answer differently, and ways to get it slightly wrong, for tests of the maths verifier."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction

_FRACTION = re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}|\\[dt]?frac\s*(\d)\s*(\d)")
_WHOLE = re.compile(r"-?\d+")
_TERM = re.compile(r"(?<=[\w})]) ?([+-]) ?(?=[\w\\])")

# An answer as it may stand in a response.
SENTENCES = [
    "{}", "So the answer is $\\boxed{{{}}}$.", "We get\n\\[\\boxed{{ {} }}\\]", "The final answer is ${}$.", "#### {}",
    "Final Answer: The final answer is ${}$. I hope it is correct.", "First \\boxed{{99}}, no: \\boxed{{{}}}",
    "Therefore \\fbox{{{}}}", "Hence it must be ${}$", "**Answer:** \\({}\\)",
]  # fmt: skip


def whole(answer: str) -> int | None:
    return int(answer) if _WHOLE.fullmatch(answer) and len(answer) < 15 else None


def _number(answer: str) -> Fraction | None:
    found = _FRACTION.fullmatch(answer)
    if found:
        return Fraction(int(found[1] or found[3]), int(found[2] or found[4]))
    return Fraction(answer) if re.fullmatch(r"-?(\d+|\d*\.\d+)", answer) and len(answer) < 15 else None


def _terminating(value: Fraction) -> str | None:
    for places in range(1, 8):
        if (value * 10**places).denominator == 1:
            return f"{float(value):.{places}f}"
    return None


def _reordered(answer: str) -> str | None:
    """a + b + c → c + a + b, of what is a plain sum."""
    if re.search(r"[()\[\],=_]|\{[^{}]*[-+{]|\\(?!pi|sqrt|cdot)|\\pm", answer):
        return None
    signed = re.findall(r"[+-]?[^+-]+", answer.replace(" ", ""))
    if len(signed) < 2 or "^{" in answer:
        return None
    signed = [term if term[0] in "+-" else f"+{term}" for term in signed]
    return "".join([signed[-1], *signed[:-1]]).removeprefix("+")


def _list_reversed(answer: str) -> str | None:
    if re.fullmatch(r"[-\d ]+(,[-\d ]+)+", answer) and not re.fullmatch(r"\d{1,3}(,\d{3})+", answer):
        return ", ".join(part.strip() for part in reversed(answer.split(",")))
    return None


def _if_whole(write: Callable[[int], str], least: int = -(10**15), most: int = 10**15) -> Callable[[str], str | None]:
    return lambda a: write(n) if (n := whole(a)) is not None and least <= n <= most else None


def _if_number(write: Callable[[Fraction], str | None]) -> Callable[[str], str | None]:
    return lambda a: write(n) if (n := _number(a)) is not None else None


def _sub(pattern: str, by: str) -> Callable[[str], str | None]:
    """What re.sub makes of an answer that has the pattern; None for others."""
    return lambda a: re.sub(pattern, by, a) if re.search(pattern, a) else None


def _one_root(answer: str) -> str | None:
    found = re.fullmatch(r"(\d+) ?\\sqrt\{(\d+)\}", answer)
    return f"\\sqrt{{{int(found[1]) ** 2 * int(found[2])}}}" if found else None


def _both_signs(answer: str) -> str | None:
    if "\\pm" not in answer or "{1\\pm" in answer:
        return None
    return ", ".join(answer.replace("\\pm", sign) for sign in "-+")


def _no_spaces(answer: str) -> str | None:
    if "\\\\" in answer or "mbox" in answer:
        return None
    return re.sub(r"(?<![A-Za-z\\]) | (?![A-Za-z])", "", answer)


_NAMED = re.compile(r"[=:]|\\in|\\text")

REWRITERS: dict[str, Callable[[str], str | None]] = {
    "as it is": lambda a: a,
    "dfrac": _sub(r"\\frac", r"\\dfrac"),
    "tfrac": _sub(r"\\frac", r"\\tfrac"),
    "braced fraction": _sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}"),
    "slash": _sub(r"^\\frac\{(\d+)\}\{(\d+)\}$", r"\1/\2"),
    "no spaces": _no_spaces,
    "more spaces": _sub(r"([+=])", r" \1 "),
    "left right": lambda a: a.replace("(", "\\left(").replace(")", "\\right)") if "\\left" not in a else None,
    "no left right": _sub(r"\\(left|right)", ""),
    "thin spaces": _sub(", ", r",\\; "),
    "decimal": _if_number(_terminating),
    "unsimplified": _if_number(lambda n: rf"\frac{{{6 * n.numerator}}}{{{6 * n.denominator}}}"),
    "thousands": _if_whole(lambda n: f"{n:,}", least=1000),
    "spaced thousands": _if_whole(lambda n: f"{n:,}".replace(",", "\\ "), least=1000),
    "latex thousands": _if_whole(lambda n: f"{n:,}".replace(",", "{,}"), least=1000),
    "root": _if_whole(lambda n: f"\\sqrt{{{n * n}}}", least=1),
    "product": _if_whole(lambda n: f"{n} \\times 1"),
    "difference": _if_whole(lambda n: f"{n + 7} - 7"),
    "unit": lambda a: f"{a}\\text{{ cm}}" if _number(a) is not None else None,
    "word behind": _if_whole(lambda n: f"{n} apples"),
    "dollars": _if_whole(lambda n: f"\\${n}", least=0),
    "no dollars": _sub(r"\\\$", ""),
    "no degrees": _sub(r"\^\\circ", ""),
    "degrees in words": _sub(r"\^\\circ", " degrees"),
    "degree braces": _sub(r"\^\\circ", r"^{\\circ}"),
    "named": lambda a: f"t = {a}" if not _NAMED.search(a) else None,
    "no name": _sub(r"^[xy] ?= ?(?=\d+$|-?2x)", ""),
    "no membership": _sub(r"^x \\in ", ""),
    "inequality": _sub(r"^x \\in \[(.*),(.*)\]$", r"\1 \\le x \\le \2"),
    "plain text": _sub(r"^\\text\{([^{}]*)\}$", r"\1"),
    "bold text": _sub(r"^\\text(?=\{)", r"\\textbf"),
    "small letters": lambda a: a.lower() if re.fullmatch(r"\\text\{[A-Za-z]{3,}\}", a) else None,
    "letter alone": _sub(r"^\\text\{\(([A-Z])\)\}$", r"\1"),
    "square brackets": _sub("pmatrix", "bmatrix"),
    "reordered sum": _reordered,
    "reordered list": _list_reversed,
    "reordered union": lambda a: " \\cup ".join(reversed(a.split("\\cup"))) if "\\cup" in a else None,
    "both signs": _both_signs,
    "minus sign": _sub("-", "−"),
    "letter pi": _sub(r"\\pi", "π"),
    "times before pi": _sub(r"(\d) ?\\pi", r"\1 \\cdot \\pi"),
    "times before root": _sub(r"(\d) ?\\sqrt", r"\1 \\cdot \\sqrt"),
    "power a half": _sub(r"(?<!\\)\\sqrt\{(\d+)\}", r"(\1)^{1/2}"),
    "plain root": _sub(r"^(\d*)\\sqrt\{(\d+)\}$", r"\1sqrt(\2)"),
    "one root": _one_root,
    "subscript braces": _sub(r"_(\d)", r"_{\1}"),
    "dollar signs": lambda a: f"${a}$" if "$" not in a else None,
    "stop at the end": lambda a: f"{a}.",
}


def rewritten(answer: str) -> Iterator[tuple[str, str]]:
    """(how, answer written so) for each way that applies."""
    for how, rewrite in REWRITERS.items():
        other = rewrite(answer)
        if other is not None and (other != answer or how == "as it is"):
            yield how, other


def near_misses(answer: str) -> Iterator[tuple[str, str]]:
    """(what is wrong, wrong answer), none of which is equal to the answer in another form."""
    for place, character in enumerate(answer):
        if character.isdigit():
            for other in {(int(character) + 1) % 10, (int(character) + 9) % 10}:
                yield "digit", f"{answer[:place]}{other}{answer[place + 1 :]}"
    number = whole(answer)
    if number is not None:
        yield from (("off by one", str(number + 1)), ("off by one", str(number - 1)))
        yield "ten times", f"{number}0" if number else "10"
        yield "decimals behind", f"{number}.01"
        yield "half", f"{number}/2" if number else "1/2"
    one = re.fullmatch(r"[-\d.\\]\S*", answer) and not re.search(r"[,=+]|\\text|\\left", answer)
    if one and answer not in ("0", "0.0"):
        yield "sign", answer[1:] if answer[0] == "-" else f"-{answer}"
    yield from _of_structure(answer)
    yield from _of_words(answer)


def _of_structure(answer: str) -> Iterator[tuple[str, str]]:
    if (found := _FRACTION.search(answer)) is not None:
        top, bottom = found[1] or found[3], found[2] or found[4]
        if top != bottom:
            yield "upside down", answer.replace(found[0], rf"\frac{{{bottom}}}{{{top}}}")
    terms = list(_TERM.finditer(answer))
    if terms and not re.search(r"[=,(]|pmatrix", answer):
        before, after = answer[: terms[-1].start()], answer[terms[-1].end() :]
        yield "term dropped", before
        yield "term's sign", f"{before} {'-' if terms[-1][1] == '+' else '+'} {after}"
    plain = re.sub(r"\\left|\\right|\s", "", answer)
    pair = re.fullmatch(r"\(([^(),]+),([^(),]+)\)", plain)
    if pair:
        yield "closed", plain.replace("(", "[").replace(")", "]")
        if pair[1] != pair[2]:
            yield "swapped", f"({pair[2]}, {pair[1]})"
    if "\\pi" in answer and not answer.endswith("{\\pi}"):
        yield "no pi", answer.replace("\\pi", "") if answer != "\\pi" else "3.14"
    if re.search(r"\\sqrt\{\d+\}", answer):
        yield "no root", re.sub(r"\\sqrt\{(\d+)\}", r"\1", answer)


def _of_words(answer: str) -> Iterator[tuple[str, str]]:
    if re.fullmatch(r"\\text\{\([A-Z]\)\}", answer):
        yield "another letter", answer.replace(answer[7], "F")
    if re.fullmatch(r"\\text\{[A-Za-z]{3,}\}", answer):
        yield "another word", f"\\text{{{answer[6:-1][::-1]}}}"
        yield "half a word", f"\\text{{{answer[6:-2]}}}"
    letter = re.search(r"(?<![\\A-Za-z])[a-df-hj-vx-z](?![A-Za-z])", answer)
    if letter and not re.search(r"\^\\circ|text|mbox|matrix", answer):
        yield "another variable", re.sub(rf"(?<![\\A-Za-z]){letter[0]}(?![A-Za-z])", "w", answer)
