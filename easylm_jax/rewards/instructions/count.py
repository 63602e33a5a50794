"""IFBench's `count:` instructions."""

from __future__ import annotations

import re
from functools import partial

from easylm_jax.rewards.instructions import tokens
from easylm_jax.rewards.instructions.base import instruction, integer, noun
from easylm_jax.rewards.instructions.tokens import EDGE

_ifbench = partial(instruction, suite="ifbench")

CONJUNCTIONS = frozenset(["and", "but", "for", "nor", "or", "so", "yet"])
_NAMES = """
    Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin Harper
    Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria Elijah Layla
    Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan
"""
PERSON_NAMES = _NAMES.split()
_PERSONAL = """
    i me we us you he him she her it they them my mine our ours your yours his hers its their theirs
    myself ourselves yourself yourselves himself herself itself themselves
"""
_OTHER = """
    this that these those who whom whose which what whoever whomever whatever whichever anybody anyone anything
    everybody everyone everything nobody nothing somebody someone something each either neither both all some any none
"""
PRONOUNS_R25 = frozenset(_PERSONAL.split())
PRONOUNS = PRONOUNS_R25 | frozenset(_OTHER.split())
_JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
_KEYWORD_COUNTS = (1, 2, 3, 5, 7)


@_ifbench(
    "count:word_count_range",
    "Use at least {min_words} and at most {max_words} words.",
    integer("min_words", 100, 500),
    integer(
        "max_words",
        0,
        0,
        draw=lambda rng, prompt, drawn: (
            drawn["min_words"] + rng.randint(drawn["min_words"] // 20, drawn["min_words"] // 10)
        ),
    ),
)
def word_count_range(text: str, version: str, min_words: int, max_words: int) -> bool:
    """The runs of word characters number min_words to max_words, both included."""
    return min_words <= len(re.findall(r"\w+", text)) <= max_words


@_ifbench("count:unique_word_count", "Use at least {N} different words.", integer("N", 100, 500))
def unique_word_count(text: str, version: str, N: int) -> bool:
    """At least N different words. As published, a token of punctuation alone counts as the empty word."""
    words = {word.strip(EDGE) for word in text.lower().split()}
    if version == "fixed":
        words.discard("")
    return len(words) >= N


@_ifbench("count:conjunctions", "Use at least {small_n} different coordinating conjunctions.", integer("small_n", 2, 6))
def conjunctions(text: str, version: str, small_n: int) -> bool:
    """At least small_n different conjunctions. As published, "And" and "and," are different from "and"."""
    found = {word for word in text.split() if word.strip(EDGE).lower() in CONJUNCTIONS}
    if version == "fixed":
        found = {word.strip(EDGE).lower() for word in found}
    return len(found) >= small_n


@_ifbench(
    "count:person_names",
    f"Mention at least {{N}} different people, with names out of this list: {', '.join(PERSON_NAMES)}.",
    integer("N", 1, 50),
)
def person_names(text: str, version: str, N: int) -> bool:
    """At least N of the fifty names, as whole words and in their case; in r25 inside of words too."""
    edge = "" if version == "r25" else r"\b"
    return sum(1 for name in PERSON_NAMES if re.search(f"{edge}{name}{edge}", text)) >= N


@_ifbench("count:numbers", "Write exactly {N} numbers in digits.", integer("N", 1, 6))
def numbers(text: str, version: str, N: int) -> bool:
    """Exactly N runs of digits once ASCII punctuation is gone: 1,000 and 3.5 are one each, and so is 10:30."""
    return len(re.findall(r"\d+", tokens.no_punctuation(text))) == N


@_ifbench(
    "count:punctuation",
    "Use each of these marks at least once: full stop, comma, exclamation mark, question mark, semicolon, colon; and "
    "besides those an interrobang (!?).",
)
def punctuation(text: str, version: str) -> bool:
    """An interrobang, and every mark outside of it."""
    if not any(mark in text for mark in ("!?", "?!", "‽")):
        return False
    rest = text.replace("?!", "", 1) if "?!" in text else text.replace("!?", "", 1)
    return all(mark in rest for mark in ".,!?;:")


@_ifbench(
    "count:words_japanese",
    "Write every word whose position is a multiple of {N} in Japanese.",
    integer("N", 1, 30, minimum=1),
)
def words_japanese(text: str, version: str, N: int) -> bool:
    """Words N, 2N, ... hold a Japanese character (Han included) or are digits. "fixed" wants N words at least."""
    words = text.split()
    if version == "fixed" and len(words) < N:
        return False
    chosen = (word.strip(EDGE) for word in words[N - 1 :: N])
    return all(not word or word.isdigit() or _JAPANESE.search(word) for word in chosen)


@_ifbench("count:pronouns", "Use at least {N} pronouns.", integer("N", 1, 25))
def pronouns(text: str, version: str, N: int) -> bool:
    """At least N pronouns, repeats counted. r25 knows the personal ones alone and does not split contractions."""
    if version == "r25":
        return sum(1 for word in tokens.no_punctuation(text.lower()).split() if word in PRONOUNS_R25) >= N
    return sum(1 for word in tokens.treebank_words(text.replace("/", " ").lower()) if word in PRONOUNS) >= N


def _describe_keywords(**keywords: str) -> str:
    times = ("once", "twice", "three times", "five times", "seven times")
    named = [f'"{keyword}" {often}' for keyword, often in zip(keywords.values(), times, strict=True)]
    return f"Use the keyword {', '.join(named[:-1])} and {named[-1]}, no more and no less."


@_ifbench("count:keywords_multiple", _describe_keywords, *(noun(f"keyword{place}") for place in range(1, 6)))
def keywords_multiple(text: str, version: str, **keywords: str) -> bool:
    """The five keywords occur, inside of words too and in any case, 1, 2, 3, 5 and 7 times."""
    lower = text.lower()
    named = [keywords[f"keyword{place}"].lower() for place in range(1, 6)]
    return all(lower.count(keyword) == times for keyword, times in zip(named, _KEYWORD_COUNTS, strict=True))
