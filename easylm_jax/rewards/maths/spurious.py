"""Extraction and grading as in Spurious Rewards (arXiv 2506.10947; spec spurious_rewards §3), quirks included.

response → extract → normalise → answer; answer, label → two string normalisers, then tuples' parts by value
"""

from __future__ import annotations

import functools
import re

from easylm_jax.rewards.maths.parse import parse
from easylm_jax.rewards.maths.tokens import LONGEST, Unreadable
from easylm_jax.rewards.maths.values import same_value
from easylm_jax.rewards.maths.words import COUNTED_THINGS, COUNTS

_REACH = 100_000  # characters of a box that is never closed
_NUMBER = re.compile(r"-?\d*\.?\d+")
_TAIL = 100_000


def extract(response: str, r1: bool = False) -> str:
    """The answer of a response, normalised; "" where there is none (§3.1). `r1` looks behind the last <answer>."""
    if r1:
        response = response.rpartition("<answer>")[2].strip().removesuffix("</answer>").strip()
    if "final answer is $" in response and "$. I hope" in response:
        answer = response.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()
    elif "boxed" in response:
        answer = last_boxed(response) or ""
    else:
        for phrase in ("he answer is", "final answer is", "答案是"):
            if phrase in response:
                answer = response.rpartition(phrase)[2].strip()
                break
        else:
            numbers = _NUMBER.findall(response[-_TAIL:].replace(",", ""))
            answer = numbers[-1] if numbers else ""
    answer = cleaned(answer)
    return normalise(answer) if len(answer) <= LONGEST else answer[:LONGEST]


def last_boxed(text: str) -> str | None:
    """What follows the last "boxed": inside its braces (to the end where they never close), or up to the next "$".
    None without a box."""
    _, found, rest = text.rpartition("boxed")
    if not found:
        return None
    if not rest.startswith("{"):
        return rest[:_REACH].partition("$")[0].strip()
    depth = 0
    for brace in re.finditer(r"[{}]", rest[:_REACH]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return rest[1 : brace.start()]
    return rest[1:_REACH]


def cleaned(answer: str) -> str:
    """Without line breaks and the blanks behind them, one ":" in front, one "." and then one "/" at the end."""
    return re.sub(r"\n\s*", "", answer).removeprefix(":").removesuffix(".").removesuffix("/")


# The normaliser of extracted answers

_PLURALS = {"foot": "feet", "inch": "inches", "box": "boxes", "bus": "buses", "century": "centuries",
            "penny": "pennies", "man": "men", "woman": "women", "child": "children", "candy": "candies",
            "sandwich": "sandwiches", "tomato": "tomatoes", "potato": "potatoes", "vertex": "vertices"}  # fmt: skip
_THINGS = COUNTED_THINGS.split()
_ALL_UNITS = sorted({*_THINGS, *(_PLURALS.get(word, f"{word}s") for word in _THINGS)}, key=len, reverse=True)
_UNIT = re.compile(rf"(?<![\w\\])(?:{'|'.join(_ALL_UNITS)})(?!\w)")
_COUNT = re.compile(rf"(?<![A-Za-z\\])(?:{'|'.join(sorted(COUNTS, key=len, reverse=True))})(?![A-Za-z])")


def normalise(text: str) -> str:
    """The string normaliser of extracted answers (§3.1, step 7)."""
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text)
    text = text.replace("\\end{array}", "\\end{pmatrix}").replace("bmatrix", "pmatrix")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    text = text.replace("\\neq", "\\ne").replace("\\leq", "\\le").replace("\\geq", "\\ge")
    text = text.replace("\\left", "").replace("\\right", "").replace("\\{", "{").replace("\\}", "}")
    text = re.sub(r"\\text\{[^{}]*\}$", "", text).strip() or text
    for _ in range(2):
        text = _UNIT.sub("", text) or text
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "").replace("$", "")
    text = text.replace("\\(", "").replace("\\)", "")
    text = _COUNT.sub(lambda word: COUNTS[word[0]], text)
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    for prefix in ("x=", "y=", "z=", "x\\in", "y\\in", "z\\in", "x\\to", "y\\to", "z\\to"):
        text = text.replace(prefix, "")
    text = text.replace("\\emptyset", "{}").replace("(-\\infty,\\infty)", "\\mathbb{R}")
    text = text.replace("\\%", "").replace("%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = re.sub(r"(?<!\\)infinity", r"\\infty", text)
    text = re.sub(r"(?<!\\)inf(?![a-z])", r"\\infty", text).replace("+\\infty", "\\infty")
    text = text.replace("and", "").replace("\\mathbf", "")
    text = re.sub(r"\\mbox\{[^{}]*\}", "", text)
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(\d+)\.0+(?![\d.])", r"\1", text)
    if not text:
        return text
    if text[0] == ".":
        text = f"0{text}"
    text = _short_left_side_dropped(text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    return _slash_as_fraction(_fractions_braced(text.replace(" ", "")))


def _short_left_side_dropped(text: str) -> str:
    """k = 5 → 5: what stands before a single equals sign goes where it has one or two characters."""
    left, _, right = text.partition("=")
    return right.strip() if text.count("=") == 1 and len(left.strip()) <= 2 else text


def _fractions_braced(text: str) -> str:
    r"""\frac12 → \frac{1}{2}, also where one of the two has braces already."""
    text = re.sub(r"\\frac([^{\\\s])([^{\\\s])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{\\\s])\{", r"\\frac{\1}{", text)
    return re.sub(r"(\\frac\{[^{}]*\})([^{\\\s])", r"\1{\2}", text)


def _slash_as_fraction(text: str) -> str:
    found = re.fullmatch(r"(-?\d+)/(-?\d+)", text)
    return rf"\frac{{{found[1]}}}{{{found[2]}}}" if found else text


# The grader


@functools.lru_cache(maxsize=20_000)
def grade(given: str, gold: str) -> bool:
    """Whether an extracted answer counts as the label (§3.2)."""
    if len(given) > LONGEST or len(gold) > LONGEST:
        return False
    if _first_form(given) == _first_form(gold):
        return True
    given, gold = _second_form(given), _second_form(gold)
    if given == gold:
        return True
    if not given:
        return False
    ours, theirs = _elements(given), _elements(gold)
    if len(theirs) > 1 and (given[0] != gold[0] or given[-1] != gold[-1]):
        return False
    return len(ours) == len(theirs) and all(map(_same_element, ours, theirs))


def _first_form(text: str) -> str:
    """Hendrycks' normaliser: step A."""
    text = text.strip()
    if (found := re.fullmatch(r"\\text\{([^{}]*)\}", text)) is not None:
        text = found[1].strip()
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    if text.count("\\text{ ") == 1:
        text = text.partition("\\text{ ")[0]
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = f"0{text}"
    text = _short_left_side_dropped(text)
    text = re.sub(r"\\sqrt([^{\s\\\[])", r"\\sqrt{\1}", text).replace(" ", "")
    text = _fractions_braced(text)
    return r"\frac{1}{2}" if text == "0.5" else _slash_as_fraction(text)


_SIXTEEN_UNITS = re.compile(
    r"(?:degree|centimeter|cm|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard)"
    r"(?:es)?s? *(?:\^[0-9]+)?"
)


def _second_form(text: str) -> str:
    """Step B: units, powers of ten in words, whole numbers, LaTeX as plain text."""
    text = text.strip()
    if (found := re.fullmatch(r"\\text\{([^{}]*)\}", text)) is not None:
        text = found[1]
    text = text.replace("\\%", "%").replace("\\$", "$").replace("$", "").replace("%", "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, power in (("million", 6), ("billion", 9), ("trillion", 12)):
        text = text.replace(word, f"*10^{power}")
    text = _SIXTEEN_UNITS.sub("", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    text = _whole(text)
    if "\\" in text:
        text = _plain(text)
    text = re.sub(r"- *", "-", text)
    text = re.sub(r"([0-9]) +([0-9])", r"\1+\2", text)
    text = text.replace(" ", "").replace("{", "").replace("}", "").lower()
    return _without_commas(text) if _is_whole(text) else text


def _whole(text: str) -> str:
    """142.0 → 142."""
    text = text.strip()
    found = re.fullmatch(r"([+-]?\d+)(?:\.0*)?", text)
    return str(int(found[1])) if found and len(text) < LONGEST else text


def _without_commas(text: str) -> str:
    return str(int(text.replace(",", "")))


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"-?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.0*)?", text) is not None and "." not in text


def _plain(text: str) -> str:
    r"""LaTeX as plain text: \frac{1}{2} → 1/2, \sqrt{2} → sqrt(2), \pi → pi."""
    text = re.sub(r"\\(?:text|mathrm|mbox|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\[dt]?frac", r" \\frac", text)
    for _ in range(6):  # from the inside out
        before = text
        text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", _over, text)
        text = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"sqrt(\1)", text)
        if text == before:
            break
    for command, plain in (
        ("cdot", "*"), ("times", "*"), ("pi", "pi"), ("infty", "inf"), ("cup", "U"), ("left", ""), ("right", ""),
        ("le", "<="), ("ge", ">="), ("pm", "±"),
    ):  # fmt: skip
        text = re.sub(rf"\\{command}(?![A-Za-z])", plain, text)
    text = re.sub(r"\\([a-z]+)(?![A-Za-z])", r"\1", text)
    return text.replace("\\ ", " ").replace("\\,", "").replace("\\{", "{").replace("\\}", "}").strip()


def _over(found: re.Match[str]) -> str:
    top, bottom = (part if re.fullmatch(r"\w*", part.strip()) else f"({part})" for part in found.groups())
    return f"{top}/{bottom}"


def _elements(text: str) -> list[str]:
    """The parts of a tuple or interval; anything else is one part."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))(?!\d{3},?\d?[)\]])", "", text) if text[:1] not in "([" else text
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and not any(c in "()[]" for c in text[1:-1]):
        return [part.strip() for part in text[1:-1].split(",")]
    return [text]


def _same_element(given: str, gold: str) -> bool:
    plain = r"-?[0-9]+.?/0*[1-9][0-9]*.?"
    if re.fullmatch(plain, given) and re.fullmatch(plain, gold):
        return given == gold
    if _is_whole(given) != _is_whole(gold):
        return False
    return _same_by_value(given, gold)


def _same_by_value(given: str, gold: str) -> bool:
    """Whether the difference is 0, for at most two unknown letters and no powers such as x^{2}, x^(2) or x^12."""
    both = f"({gold})-({given})"
    letters = set(re.sub(r"[^A-Za-z]", "", both.replace("sqrt", "").replace("frac", "")))
    if len(letters) > 2 or re.search(r"\^\{|\^\(|\^[0-9]+\^|\^[0-9][0-9]+", both):
        return False
    try:
        return same_value(parse(given), parse(gold))
    except (Unreadable, RecursionError):
        return False
