"""Compatibility of instructions, and prompts with several instructions (spec IFBench §4.1, §6.1)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from easylm_jax.rewards.instructions.base import REGISTRY, SUITES
from easylm_jax.rewards.instructions.scoring import find
from models.errors import UserError

_ALONE = {
    "copy:copy",
    "copy:copying_simple",
    "copy:copying_multiple",
    "new:copy_span_idx",
    "detectable_format:constrained_response",
}
# With all others but these
_ONLY_WITH = {
    "detectable_format:json_format": {"keywords:forbidden_words", "keywords:existence"},
    "combination:two_responses": {
        "keywords:forbidden_words",
        "keywords:existence",
        "language:response_language",
        "detectable_format:title",
        "punctuation:no_comma",
    },
    "combination:repeat_prompt": {"keywords:existence", "detectable_format:title", "punctuation:no_comma"},
}
_CASE = "change_case:english_capital change_case:english_lowercase"
_WRAPPERS = "detectable_format:square_brackets detectable_format:bigram_wrapping"
# What stands on the left never with what stands on the right, nor the other way round. The published table first.
_NEVER = [
    (
        "language:response_language",
        "detectable_format:multiple_sections keywords:existence keywords:frequency keywords:forbidden_words "
        f"startend:end_checker {_CASE}",
    ),
    (
        "length_constraints:number_paragraphs",
        "length_constraints:nth_paragraph_first_word length_constraints:number_sentences",
    ),
    ("paragraphs:paragraphs", "paragraphs:paragraphs2"),
    ("first_word:first_word_sent", "first_word:first_word_answer"),
    ("change_case:capital_word_frequency", _CASE),
    ("change_case:english_capital", "change_case:english_lowercase"),
    ("startend:quotation", "detectable_format:title"),
    ("detectable_format:multiple_sections", "detectable_format:number_highlighted_sections"),
    (
        "count:counting_composition",
        "count:count_unique count:count_increment_word paragraphs:paragraphs paragraphs:paragraphs2 "
        "keywords:letter_frequency keywords:frequency",
    ),
    # What the published table lacks
    (
        "paragraphs:paragraphs paragraphs:paragraphs2 count:counting_composition",
        "length_constraints:number_paragraphs length_constraints:nth_paragraph_first_word",
    ),
    ("length_constraints:number_words", "letters:letter_counting count:lowercase_counting"),
    (
        "punctuation:punctuation_dot",
        "length_constraints:number_sentences first_word:first_word_sent detectable_content:postscript "
        "count:counting_composition",
    ),
    (
        _WRAPPERS,
        f"{_WRAPPERS} detectable_format:title startend:quotation detectable_format:number_highlighted_sections "
        "detectable_format:number_bullet_lists detectable_format:multiple_sections startend:end_checker "
        "detectable_format:sentence_hyphens detectable_content:postscript keywords:start_end "
        "first_word:first_word_sent first_word:first_word_answer",
    ),
    (
        "keywords:start_end",
        "startend:end_checker startend:quotation last_word:last_word_sent last_word:last_word_answer",
    ),
    (
        "count:count_unique",
        "keywords:frequency count:count_increment_word keywords:word_count_different_numbers copy:repeat_phrase "
        "first_word:first_word_sent last_word:last_word_sent keywords:start_end",
    ),
]
_PAIRS = {
    frozenset((one, other)) for left, right in _NEVER for one in left.split() for other in right.split() if one != other
}


def conflict(one: str, other: str) -> bool:
    """Whether two instructions must not be in one prompt; symmetric, and true for an instruction with itself."""
    if one == other or one in _ALONE or other in _ALONE:
        return True
    if any(a in _ONLY_WITH and b not in _ONLY_WITH[a] for a, b in ((one, other), (other, one))):
        return True
    return frozenset((one, other)) in _PAIRS


def compatible(ids: Iterable[str]) -> bool:
    """Whether these instructions may be in one prompt."""
    return not any(conflict(one, other) for one, other in combinations(ids, 2))


def sample(
    rng: random.Random, prompt: str, count: int, suites: Sequence[str] = ("iftrain", "ifeval")
) -> tuple[str, list[str], list[dict[str, Any]]]:
    """`prompt` with `count` sampled compatible instructions of the suites; with their ids and arguments.

    There are fewer if no further instruction is compatible. The texts follow the prompt, separated by spaces.

    Raises:
        UserError: `count` is below 1, or a suite is unknown.
    """
    unknown = [suite for suite in suites if suite not in SUITES]
    if count < 1 or unknown:
        raise UserError(f"{count} instructions of {', '.join(suites)}; give 1 or more of {', '.join(SUITES)}")
    pool = [name for name, instruction in REGISTRY.items() if instruction.suite in suites]
    ids: list[str] = []
    while pool and len(ids) < count:
        ids.append(rng.choice(pool))
        pool = [name for name in pool if not conflict(name, ids[-1])]
    arguments = [find(name).sample_arguments(rng, prompt) for name in ids]
    texts = [find(name).describe(**given) for name, given in zip(ids, arguments, strict=True)]
    return " ".join([prompt, *texts]), ids, arguments
