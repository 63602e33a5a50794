r"""Normalises final answers to the plain form that is compared and parsed.

tidy(r"$\left( 3,\ \dfrac{\pi}{2} \right)$.") == r"( 3, \frac{\pi}{2} )"
"""

from __future__ import annotations

import re

from easylm_jax.rewards.maths.words import COUNTS, JOINING, MEANING, UNITS

_CHARACTERS = str.maketrans({
    "−": "-", "–": "-", "—": "-", "‐": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ",
    "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "∈": r"\in ", "∪": r"\cup ", "±": r"\pm ", "∓": r"\mp ", "≈": r"\approx ", "θ": r"\theta ", "α": r"\alpha ",
    "β": r"\beta ", "∅": r"\emptyset ", "²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}", "⟨": r"\langle ", "⟩": r"\rangle ", "（": "(", "）": ")", "，": ",", "％": "%", "’": "'",
    "€": "", "£": "", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\ufeff": "", "\x00": "",
})  # fmt: skip

_SUBSTITUTIONS = [(re.compile(pattern), by) for pattern, by in (
    (r"\\displaystyle(?![A-Za-z])|\\limits(?![A-Za-z])|\\!|\\label\{[^{}]*\}", ""),
    (r"\\\$|\\euro(?![A-Za-z])|\\pounds(?![A-Za-z])", ""),
    (r"\\[()]|\\\[|(?<!\\)\\\]", " "),
    (r"(?<!\\)\$", ""),
    (r"\{,\}", ","),
    (r"\\(?:left|right|middle)\s*\.", ""),
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*", ""),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\\(?:quad|qquad|enspace|thinspace|hfill|newline)(?![A-Za-z])|(?<!\\)\\[,;: ]|~|[\t\r\n]", " "),
    (r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degrees?(?![A-Za-z])", " DEGREES "),
    (r"(?<=[\d)}])\s*\bpercent(?![A-Za-z])", r"\\%"),
    (r"(?<=\d)\s?degrees?(?![A-Za-z])", " DEGREES "),
    (r"\\(?:leq|leqslant|lte)(?![A-Za-z])", r"\\le"),
    (r"\\(?:geq|geqslant|gte)(?![A-Za-z])", r"\\ge"),
    (r"\\neq(?![A-Za-z])", r"\\ne"),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
    (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
    (r"\\vert(?![A-Za-z])", "|"),
    (r"\\colon(?![A-Za-z])", ":"),
    (r"\\(?:cdotp|bullet)(?![A-Za-z])", r"\\cdot "),
    (r"\\(?:mathbb\s*\{\s*R\s*\}|R|reals?|Reals)(?![A-Za-z])", r" (-\\infty,\\infty) "),
    (r"\\(?:operatorname\*?|mathrm|rm)\s*\{\s*([a-z]{2,6})\s*\}(?=\s*(?:[({^\\]|[a-z0-9](?![A-Za-z])))", r" \1 "),
)]  # fmt: skip
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|texttt|textsf|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname|bf|rm"
    r"|emph|boldsymbol|bm)\s*\{([^{}]*)\}"
)
_BOX = re.compile(r"\\f?boxed\s*\{(.*)\}$|\\fbox\s*\{(.*)\}$", re.DOTALL)
_REPEATING = re.compile(r"(\d{0,9})\.(\d{0,9})\\(?:overline|bar)\s*\{(\d{1,12})\}")
_ANGLE = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\s?\^\s?\{?\d\}?)?)\s*"
    r"(?:\(\s*(\d{1,9}(?:\.\d{1,9})?) DEGREES \s*\)|(\d{1,9}(?:\.\d{1,9})?) DEGREES )"
)
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?:,\s?\d{3})+)(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?: \d{3})+)(?![\d,])")
_DIGIT_SPACE = re.compile(r"(?<=\d)\s+(?=\d)")

_TRAILING = re.compile(
    r"(?P<number>.*(?:[\d)}\]!]|\\pi)) ?(?P<words>(?:[A-Za-z.']+(?:\s?\^\s?\{?-?\d\}?)?[\s/]*){1,5})$", re.DOTALL
)
_POWERS = {"hundred": "2", "thousand": "3", "million": "6", "billion": "9", "trillion": "12"}


def tidy(text: str) -> str:
    """An answer without markup that has no meaning: sizes of brackets, spaces, styles, currency signs."""
    text = text.translate(_CHARACTERS).strip()
    for _ in range(3):
        box = _BOX.match(text)
        if box is None:
            break
        text = next(group for group in box.groups() if group is not None).strip()
    if "\\begin" not in text:
        text = text.replace("\\\\", "\\")  # a command whose backslash was escaped once too often
    for pattern, by in _SUBSTITUTIONS:
        text = pattern.sub(by, text)
    text = _REPEATING.sub(_repeating, text)
    text = _ANGLE.sub(_in_radians, text)
    for _ in range(3):
        text = _TEXT.sub(_words_of, text)
    text = re.sub(r"\s+", " ", text).strip()
    return text.rstrip(" .,;:").removesuffix("\\").strip() if not text.endswith("\\}") else text


def _repeating(found: re.Match[str]) -> str:
    """0.1\\overline{6} as 1/6."""
    whole, fixed, again = found.groups()
    top = int(f"0{whole}{fixed}{again}") - int(f"0{whole}{fixed}")
    return f"\\frac{{{top}}}{{{10 ** len(fixed) * (10 ** len(again) - 1)}}}"


def _in_radians(found: re.Match[str]) -> str:
    return f"{found[1]}({found[2] or found[3]}\\pi/180)"


def _words_of(found: re.Match[str]) -> str:
    return f" {found[1]} "


def numbers_joined(text: str) -> str:
    """1,000 and 1 000 and 1,\\!000 as 1000, except inside brackets: (1,000) may be a pair."""
    pieces, depth, last = [], 0, 0
    for at, character in enumerate(text):
        if character in "([":
            if depth == 0:
                pieces.append(_joined(text[last:at]))
                last = at
            depth += 1
        elif character in ")]" and depth:
            depth -= 1
            if depth == 0:
                pieces.append(text[last : at + 1])
                last = at + 1
    pieces.append(_joined(text[last:]) if depth == 0 else text[last:])
    return "".join(pieces)


def _joined(text: str) -> str:
    for pattern in (_THOUSANDS, _SPACED_THOUSANDS):
        text = pattern.sub(lambda found: found[1] + re.sub(r"[,\s]", "", found[2]), text)
    return text


def without_unit(text: str) -> tuple[str, str | None]:
    """A tidy answer without the words after its number, and the unit that they name, if it is a known one."""
    found = _TRAILING.match(text)
    if found is None:
        return text.replace("DEGREES", " ").strip() if text != "DEGREES" else text, "degree" if "DEG" in text else None
    words = re.findall(r"[A-Za-z']+", found["words"])
    spaced = text[len(found["number"]) :].startswith(" ")
    if any(word.lower() in MEANING for word in words):
        return text.replace("DEGREES", " "), None
    known = [word for word in words if word in UNITS or (len(word) > 2 and word.lower() in UNITS)]
    if not known and (not spaced or min(map(len, words)) < 3 or "\\" in found["words"]):
        return text, None
    if known and not spaced and len(known[0]) < 2:  # 5m is a product as often as a length
        return text, None
    unit = None
    if len(known) == 1 and all(w in known or w.lower() in JOINING for w in words):
        power = re.search(r"[23]", found["words"]) or re.search(r"squ?|cu", found["words"])
        order = {"2": "2", "3": "3", "sq": "2", "squ": "2", "cu": "3"}.get(power[0], "") if power else ""
        unit = (UNITS.get(known[0]) or UNITS[known[0].lower()]) + order
    return found["number"].replace("DEGREES", " ").strip(), unit


def counted(text: str) -> str:
    """Number words as digits, if the answer is nothing else: three → 3, 5 million → 5 * 10^6."""
    word = text.strip().lower()
    if word in COUNTS:
        return COUNTS[word]
    found = re.fullmatch(r"([\d.,]+) ?(hundred|thousand|million|billion|trillion)s?(?: [A-Za-z]+)?", word)
    return f"{found[1].replace(',', '')} * 10^{_POWERS[found[2]]}" if found else text


def squeezed(text: str) -> str:
    """A tidy text for comparison as a string: no spaces but between digits, no braces around one character."""
    text = _DIGIT_SPACE.sub("\x00", text)
    text = re.sub(r"\s+", "", text).replace("\x00", " ")
    return re.sub(r"([\^_])\{(\w)\}", r"\1\2", text)
