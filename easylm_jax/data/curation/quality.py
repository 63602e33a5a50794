"""Rules that leave a row out: quality, repetition, language, what a model says of itself (spec tulu3 §7.1).

A rule is a function from a row's text to the reason for leaving it out, or None. Rules of the answer read the
assistant's turns (or the answer columns), the others all text. Thresholds are those of the source that a rule names;
where none is named they are ours.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from easylm_jax.data.curation import texts
from models.errors import UserError

_CJK = re.compile("[\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_CUTOFF = re.compile(
    r"\b(?:as of my (?:last|latest|most recent) (?:knowledge )?(?:update|training)|knowledge cut-?off|"
    r"my (?:training )?data (?:only )?(?:goes|extends) (?:up )?(?:to|until)|i do not have (?:real-time|current) "
    r"(?:data|information)|cut-?off (?:date )?(?:is |of |in )(?:\w+ )?20\d\d)",
    re.IGNORECASE,
)
_MAKERS = (
    r"(?:openai|anthropic|google|deepmind|meta(?: ai)?|mistral(?: ai)?|microsoft|alibaba(?: cloud)?|databricks|cohere)"
)
_NAMES = r"(?:chatgpt|gpt-?[345]\w*|claude|bard|gemini|llama|dbrx|mistral|mixtral|qwen|command r)"
_IDENTITY = re.compile(
    rf"\b(?:i am|i'm|as|my name is|this is) (?:an? )?(?:ai |language |large )*(?:model |assistant |chatbot )?"
    rf"(?:called |named )?{_NAMES}\b|\b(?:trained|made|built|created|developed) by {_MAKERS}\b",
    re.IGNORECASE,
)
_SPECIAL = re.compile(
    r"<\|(?:endoftext|im_start|im_end|user|assistant|system|eot_id|start_header_id|end_header_id|pad|end_of_text|"
    r"begin_of_text)\|>|</?s>|\[/?INST\]|<<SYS>>|<(?:pad|unk|bos|eos)>"
)
_SENTENCE = re.compile(r"(?<=[.!?。])\s+|\n+")
_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_ANSWER_COLUMNS = ("answer", "response", "output", "completion", "solution")


class Row(NamedTuple):
    """The texts of a row: all of it, and what the assistant says."""

    all: str
    answer: str


Rule = Callable[..., str | None]


def row_of(record: Mapping[str, Any], place: str, column: str | None = None) -> Row:
    """The texts of a row that rules read."""
    everything = texts.whole_text(record, place, column)
    turns = texts.conversation_of(record) if column is None else None
    if turns is not None:
        return Row(everything, "\n".join(text for role, text in turns if role in ("assistant", "gpt", "model", "bot")))
    answers = [record[name] for name in _ANSWER_COLUMNS if isinstance(record.get(name), str)]
    return Row(everything, "\n".join(answers) if answers and column is None else everything)


def empty(row: Row) -> str | None:
    """No text, or no answer of the assistant."""
    return None if row.all.strip() and row.answer.strip() else "empty"


def length(row: Row, least: float = 1, most: float = 100_000) -> str | None:
    """Fewer or more words than given."""
    count = len(row.all.split())
    return "too short" if count < least else "too long" if count > most else None


def cjk(row: Row, share: float = 0.05) -> str | None:
    """At least this share of Chinese, Japanese or Korean characters (open-instruct's filter: 5 %)."""
    return "cjk" if row.all and len(_CJK.findall(row.all)) >= share * len(row.all) else None


def cutoff(row: Row) -> str | None:
    """The assistant speaks of the date up to which it was trained."""
    return "cutoff" if _CUTOFF.search(row.answer) else None


def identity(row: Row) -> str | None:
    """The assistant says that it is another maker's model."""
    return "identity" if _IDENTITY.search(row.answer) else None


def special(row: Row) -> str | None:
    """A text holds the control tokens of a chat template."""
    return "special tokens" if _SPECIAL.search(row.all) else None


def compression(row: Row, most: float = 5.0, least: float = 200) -> str | None:
    """A text of at least `least` bytes that zlib makes more than `most` times shorter (spec sdsd §5)."""
    raw = row.all.encode()
    return "compression" if len(raw) >= least and compression_ratio(raw) > most else None


def compression_ratio(raw: bytes) -> float:
    """Bytes over compressed bytes."""
    return len(raw) / max(1, len(zlib.compress(raw, 6)))


def repeats(row: Row, consecutive: float = 3, times: float = 6) -> str | None:
    """A sentence or paragraph of at least 20 characters that is said so often, in a row or in all.

    Text with code or formulas may repeat twice as often, lists three times (the factors of open-instruct's filter).
    """
    factor = 3 if re.search(r"^\s*(?:[-*•]|\d+\.) ", row.answer, re.MULTILINE) else 1
    factor = max(factor, 2 if re.search(r"```|\$|\\\(", row.answer) else 1)
    for parts in (_SENTENCE.split(row.answer), row.answer.split("\n\n")):
        named = [" ".join(part.split()).casefold() for part in parts]
        named = [part for part in named if len(part) >= 20]
        if not named:
            continue
        run = longest = 1
        for before, after in zip(named, named[1:], strict=False):
            run = run + 1 if before == after else 1
            longest = max(longest, run)
        if longest >= consecutive * factor or collections.Counter(named).most_common(1)[0][1] >= times * factor:
            return "repeats"
    return None


def gopher_quality(row: Row) -> str | None:
    """The quality rules of Gopher (Rae et al. 2021, arXiv 2112.11446, §A.1.1), for documents."""
    words = row.all.split()
    count = len(words)
    if not 50 <= count <= 100_000:
        return "gopher: words"
    if not 3 <= sum(map(len, words)) / count <= 10:
        return "gopher: word length"
    if (row.all.count("#") + row.all.count("...") + row.all.count("…")) / count > 0.1:
        return "gopher: symbols"
    lines = [line.strip() for line in row.all.splitlines() if line.strip()]
    if sum(line.startswith(("•", "-", "*")) for line in lines) > 0.9 * len(lines):
        return "gopher: bullets"
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines):
        return "gopher: ellipsis"
    if sum(any(map(str.isalpha, word)) for word in words) < 0.8 * count:
        return "gopher: letters"
    if len(_STOP_WORDS & {word.lower().strip(".,;:!?") for word in words}) < 2:
        return "gopher: stop words"
    return None


_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def gopher_repetition(row: Row) -> str | None:
    """The repetition rules of Gopher (arXiv 2112.11446, Table A1), for documents."""
    total = max(1, len(row.all))
    for name, parts, share, characters in (
        ("lines", [x for x in row.all.split("\n") if x.strip()], 0.30, 0.20),
        ("paragraphs", [x for x in row.all.split("\n\n") if x.strip()], 0.30, 0.20),
    ):
        counts = collections.Counter(parts)
        again = {part: n - 1 for part, n in counts.items() if n > 1}
        if sum(again.values()) > share * max(1, len(parts)):
            return f"gopher: repeated {name}"
        if sum(n * len(part) for part, n in again.items()) > characters * total:
            return f"gopher: characters in repeated {name}"
    words = row.all.split()
    for n, share in _TOP.items():
        grams = collections.Counter(zip(*(words[i:] for i in range(n)), strict=False))
        if grams:
            gram, times = grams.most_common(1)[0]
            if times > 1 and times * (sum(map(len, gram)) + n - 1) > share * total:
                return f"gopher: top {n}-gram"
    for n, share in _DUPLICATE.items():
        if _in_repeated(words, n) > share * total:
            return f"gopher: repeated {n}-grams"
    return None


def _in_repeated(words: Sequence[str], n: int) -> int:
    """Characters of words in n-grams that occurred before; each word counts once."""
    seen: set[tuple[str, ...]] = set()
    covered, upto = 0, 0
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            covered += sum(map(len, words[max(i, upto) : i + n]))
            upto = i + n
        seen.add(gram)
    return covered


def language(row: Row, name: str = "en", least: float = 0.8) -> str | None:
    """langdetect finds another language, or this one with less than the given probability (spec sdsd §5: 0.8)."""
    detect = _detector()
    found = detect(row.all[:2000])
    return None if found.get(name, 0.0) >= least else "language"


@functools.cache
def _detector() -> Callable[[str], dict[str, float]]:
    try:
        import langdetect
    except ImportError:
        raise UserError("the rule `language` needs langdetect; pip install 'easylm_jax[instructions]'") from None
    langdetect.DetectorFactory.seed = 0  # otherwise results change from run to run

    def detect(text: str) -> dict[str, float]:
        try:
            return {found.lang: found.prob for found in langdetect.detect_langs(text)}
        except langdetect.LangDetectException:  # no letters
            return {}

    return detect


RULES: dict[str, Rule] = {
    function.__name__: function
    for function in (
        empty, length, special, cjk, cutoff, identity, repeats, compression, gopher_quality, gopher_repetition,
        language,
    )
}  # fmt: skip
DEFAULT = ("empty", "special", "cutoff", "identity", "repeats", "compression")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A rule with its options, as a person writes it: `cjk`, `length(least=5)`, `language(name=de)`."""

    text: str

    def __post_init__(self):
        match = re.fullmatch(r"(\w+)(?:\((.*)\))?", self.text.strip())
        if match is None or match[1] not in RULES:
            raise UserError(f"filter: no rule {self.text!r}; there are {', '.join(RULES)}")
        options: dict[str, Any] = {}
        known = RULES[match[1]].__annotations__
        for pair in filter(None, (match[2] or "").split(",")):
            name, equals, value = (part.strip() for part in pair.partition("="))
            if not equals or name not in known or name in ("row", "return"):
                allowed = ", ".join(sorted(set(known) - {"row", "return"})) or "none"
                raise UserError(f"filter: {self.text!r}: no option {name!r} of {match[1]}; its options: {allowed}")
            if known[name] == "str":
                options[name] = value
                continue
            try:
                options[name] = float(value)
            except ValueError:
                raise UserError(f"filter: {self.text!r}: {name} must be a number, not {value!r}") from None
        object.__setattr__(self, "rule", functools.partial(RULES[match[1]], **options))

    def __call__(self, row: Row) -> str | None:
        """The reason for leaving a row out, or None."""
        return self.rule(row)  # type: ignore[attr-defined]


def parse_rules(text: str) -> list[Chosen]:
    """The rules of a list such as "empty, length(least=5)"."""
    return [Chosen(part) for part in re.split(r",(?![^(]*\))", text) if part.strip()]
