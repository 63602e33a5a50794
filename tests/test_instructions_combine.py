"""Which instructions stand together, and prompts that are made with several."""

import random

import pytest

from easylm_jax.rewards.instructions import REGISTRY, combine
from models.errors import UserError

PROMPT = "Tell me of the tides in the old port of Riga."


def test_conflicts_are_symmetric_and_name_instructions_that_exist():
    for one in REGISTRY:
        assert combine.conflict(one, one)
        assert all(combine.conflict(one, other) == combine.conflict(other, one) for other in REGISTRY)
    named = set().union(*combine._PAIRS, combine._ALONE, combine._ONLY_WITH, *combine._ONLY_WITH.values())
    assert named <= set(REGISTRY)


@pytest.mark.parametrize(
    "one, other, verdict",
    [
        ("copy:copy", "punctuation:no_comma", True),
        ("detectable_format:json_format", "keywords:existence", False),
        ("keywords:frequency", "detectable_format:json_format", True),
        ("combination:two_responses", "detectable_format:title", False),
        ("combination:two_responses", "combination:repeat_prompt", True),
        ("combination:repeat_prompt", "punctuation:no_comma", False),
        ("change_case:english_capital", "language:response_language", True),
        ("paragraphs:paragraphs2", "paragraphs:paragraphs", True),
        ("paragraphs:paragraphs", "length_constraints:number_paragraphs", True),
        ("count:count_unique", "copy:repeat_phrase", True),
        ("keywords:existence", "punctuation:no_comma", False),
    ],
)
def test_pairs_of_the_table(one, other, verdict):
    assert combine.conflict(one, other) is verdict


def test_prompts_hold_their_instructions_and_no_conflict():
    seen = set()
    for seed in range(300):
        count = 1 + seed % 5
        text, ids, arguments = combine.sample(random.Random(seed), PROMPT, count)
        assert (text, ids, arguments) == combine.sample(random.Random(seed), PROMPT, count)
        assert 1 <= len(ids) <= count and len(arguments) == len(ids) and combine.compatible(ids)
        texts = [REGISTRY[name].describe(**kwargs) for name, kwargs in zip(ids, arguments, strict=True)]
        assert text == " ".join([PROMPT, *texts])
        seen.update(ids)
    assert {REGISTRY[name].suite for name in seen} == {"iftrain", "ifeval"} and len(seen) > 45


def test_a_test_set_keeps_to_its_suite():
    ids = [combine.sample(random.Random(seed), PROMPT, 2, ["ifbench"])[1] for seed in range(50)]
    assert all(REGISTRY[name].suite == "ifbench" and len(both) == 2 for both in ids for name in both)


@pytest.mark.parametrize("count, suites", [(0, ["ifeval"]), (2, ["ifevil"])])
def test_what_cannot_be_drawn_is_an_error(count, suites):
    with pytest.raises(UserError, match="give 1 or more of ifbench, iftrain, ifeval"):
        combine.sample(random.Random(0), PROMPT, count, suites)
