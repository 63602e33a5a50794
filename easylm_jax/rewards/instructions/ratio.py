"""IFBench's `ratio:` instructions."""

from __future__ import annotations

import re
from functools import partial

from easylm_jax.rewards.instructions import tokens
from easylm_jax.rewards.instructions.base import instruction, integer, text

_ifbench = partial(instruction, suite="ifbench")
_CLOSERS = "\"'”’»)]}*_ "
_TOLERANCE = 2


@_ifbench("ratio:stop_words", "At most {percentage}% of the words may be stop words.", integer("percentage", 1, 100))
def stop_words(text: str, version: str, percentage: int) -> bool:
    """The share of English stop words among runs of word characters; without a word there is no share."""
    words = re.findall(r"\w+", text)
    if not words:
        return False
    listed = tokens.stop_words()
    return sum(1 for word in words if word.lower() in listed) / len(words) * 100 <= percentage


def _marks(text: str, version: str) -> list[str]:
    """The last character of each sentence; in "fixed" the one before what closes a quotation or a bracket."""
    sentences = tokens.sentences(text, version)
    if version == "fixed":
        sentences = tuple(sentence.rstrip(_CLOSERS) for sentence in sentences)
    return [sentence[-1:] for sentence in sentences]


@_ifbench("ratio:sentence_type", "Write two declarative sentences for each question.")
def sentence_type(text: str, version: str) -> bool:
    """Sentences that end in a full stop are twice those that end in a question mark; 0 and 0 are as published."""
    marks = _marks(text, version)
    declarative, questions = marks.count("."), marks.count("?")
    return declarative == 2 * questions and (version != "fixed" or questions > 0)


@_ifbench("ratio:sentence_balance", "Write as many declarative sentences as questions and as exclamations.")
def sentence_balance(text: str, version: str) -> bool:
    """Sentences that end in . ? and ! are equally many."""
    marks = _marks(text, version)
    counts = {marks.count(mark) for mark in ".?!"}
    return len(counts) == 1 and (version != "fixed" or counts != {0})


@_ifbench(
    "ratio:sentence_words",
    "Write three sentences that have the same number of characters and share no word.",
)
def sentence_words(text: str, version: str) -> bool:
    """Three sentences, equally long, their end mark included. That they share no word is checked in "fixed"."""
    sentences = [sentence.strip() for sentence in tokens.sentences(text, version)]
    if len(sentences) != 3 or len({len(sentence) for sentence in sentences}) != 1:
        return False
    if version != "fixed":
        return True
    words = [word for sentence in sentences for word in set(tokens.plain_words(sentence))]
    return len(words) == len(set(words))


def _describe_overlap(reference_text: str, percentage: int) -> str:
    return (
        f"Share {percentage}% (two more or less) of your trigrams, counted in characters, with this text: "
        f"{reference_text}"
    )


@_ifbench(
    "ratio:overlap",
    _describe_overlap,
    text("reference_text", lambda rng, prompt, drawn: prompt),
    integer("percentage", 1, 100),
)
def overlap(text: str, version: str, reference_text: str, percentage: int) -> bool:
    """The share of the text's distinct character trigrams that the reference has, within two points."""
    own, other = _trigrams(text), _trigrams(reference_text)
    if not own:
        return False
    shared = len(own & other) / len(own) * 100  # in this order, so that it rounds as the published check does
    return percentage - _TOLERANCE <= shared <= percentage + _TOLERANCE


def _trigrams(text: str) -> set[str]:
    return {text[start : start + 3] for start in range(len(text) - 2)}
