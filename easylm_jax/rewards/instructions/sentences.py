"""IFBench's `sentence:` instructions."""

from __future__ import annotations

import re
from functools import partial
from itertools import groupby

from easylm_jax.rewards.instructions import tokens
from easylm_jax.rewards.instructions.base import instruction, integer, noun
from easylm_jax.rewards.instructions.tokens import EDGE

_ifbench = partial(instruction, suite="ifbench")


@_ifbench(
    "sentence:alliteration_increment",
    "Each sentence has more words that alliterate with a neighbour than the sentence before it.",
)
def alliteration_increment(text: str, version: str) -> bool:
    """Words in runs of two or more of one first character, summed over a sentence, strictly increase."""
    best = -1
    for sentence in tokens.sentences(text, version):
        words = [word.lstrip(EDGE) for word in sentence.lower().split()]
        runs = [len(list(run)) for _, run in groupby(word[0] for word in words if word)]
        score = sum(run for run in runs if run > 1)
        if score <= best:
            return False
        best = score
    return True


@_ifbench(
    "sentence:increment",
    "Each sentence has exactly {small_n} words more than the sentence before it.",
    integer("small_n", 1, 5),
)
def increment(text: str, version: str, small_n: int) -> bool:
    """Each sentence has small_n words more than the last. "fixed" wants two sentences at least."""
    counts = [len(tokens.no_punctuation(sentence).split()) for sentence in tokens.sentences(text, version)]
    if version == "fixed" and len(counts) < 2:
        return False
    return all(after == before + small_n for before, after in zip(counts, counts[1:], strict=False))


@_ifbench(
    "sentence:keyword",
    'Use the word "{word}" in sentence {N}.',
    noun("word", strip=False),
    integer("N", 1, 20, minimum=1),
)
def keyword(text: str, version: str, word: str, N: int) -> bool:
    """Sentence N holds the word in any case; in r25 inside of other words too."""
    sentences = tokens.sentences(text, version)
    if len(sentences) < N:
        return False
    edge = "" if version == "r25" else r"\b"
    return re.search(f"{edge}{re.escape(word)}{edge}", sentences[N - 1], re.IGNORECASE) is not None
