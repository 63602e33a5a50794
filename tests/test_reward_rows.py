"""Rows that name their verifier, and instructions scored as evaluations and as rewards count them."""

import json

import pytest

from easylm_jax.rewards import VERIFIERS, verifier
from easylm_jax.rewards.instructions.scoring import instructions
from easylm_jax.rewards.registry import by_dataset
from models.errors import UserError

NO_COMMA = json.dumps([{"instruction_id": ["punctuation:no_comma", "startend:quotation"], "kwargs": [None, None]}])


def test_a_row_is_judged_by_the_verifier_it_names_in_any_case():
    row = {"dataset": "GSM8K", "ground_truth": "18"}
    assert by_dataset("so it is 18", row) == 1 and by_dataset("so it is 19", row) == 0
    row = {"dataset": "ifeval", "ground_truth": NO_COMMA}
    assert by_dataset('"ebb"', row) == 1 and by_dataset("ebb", row) == 0.5


def test_a_row_with_several_verifiers_gets_the_sum():
    row = {"dataset": ["gsm8k", "ifeval"], "ground_truth": ["18", NO_COMMA]}
    assert by_dataset("the answer is 18", row) == 1.5
    assert by_dataset("the answer, perhaps, is 18", row) == 1.0


def of_label(response, record):
    return float(response == record["ground_truth"]) + 10 * (record["dataset"] == "gsm8k")


def test_another_verifier_takes_the_place_of_one_that_rows_name():
    row = {"dataset": "gsm8k", "ground_truth": "x"}
    judge = verifier("by_dataset(gsm8k='test_reward_rows:of_label')")
    assert judge("x", row) == 11 and judge("y", row) == 10
    assert by_dataset("18", {"dataset": "own", "ground_truth": "18"}, own="gsm8k") == 1


@pytest.mark.parametrize("name", ["gsm9k", "test_reward_rows:of_label", "by_dataset", "code", "judge", ""])
def test_a_row_cannot_name_what_is_no_verifier_nor_what_a_recipe_must_ask_for(name):
    row = {"dataset": name, "ground_truth": "18", "_record": 7, "_source": "rows.jsonl"}
    with pytest.raises(UserError, match=r"record 7 of rows.jsonl names the verifier .*by_dataset\("):
        by_dataset("18", row)


@pytest.mark.parametrize(
    "names, labels",
    [(["gsm8k"], "18"), (["gsm8k", "gsm8k"], ["18"]), ([], []), (None, "18"), (5, "18"), (["gsm8k"], None)],
)
def test_a_row_without_a_label_for_each_name_is_an_error(names, labels):
    with pytest.raises(UserError, match="one ground_truth for each verifier"):
        by_dataset("18", {"dataset": names, "ground_truth": labels})


RECORD = {
    "instruction_id_list": ["punctuation:no_comma", "startend:quotation", "keywords:existence"],
    "kwargs": [{}, None, {"keywords": ["ebb"], "N": None}],
}


@pytest.mark.parametrize(
    "response, options, value",
    [
        ('Sure, here:\n"ebb"', {}, 1 / 3),
        ('Sure, here:\n"ebb"', {"mode": "loose"}, 1),
        ('Sure, here:\n"ebb"', {"mode": "loose", "level": "prompt"}, 1),
        ('Sure, here:\n"ebb"', {"level": "prompt"}, 0),
        ('Sure, here:\n"ebb"', {"mode": "loose", "level": "count"}, 3),
        ('"ebb"', {"level": "count", "group": "startend keywords"}, 2),
        ('"flow"', {"group": "keywords"}, 0),
        ('"ebb"', {"group": "ratio"}, 0),
        ('a, b</think><answer>"ebb"</answer>', {}, 1),
        ('a, b</think><answer>"ebb"</answer>', {"answer": False}, 1 / 3),
        ("", {}, 0),
        ("<think>never ends, well", {"level": "prompt"}, 0),
    ],
)
def test_instructions_are_counted_as_asked(response, options, value):
    assert instructions(response, RECORD, **options) == pytest.approx(value)


def test_versions_are_those_of_the_checks():
    record = {"instruction_id_list": ["keywords:palindrome"], "kwargs": [{}]}
    assert [instructions("a boat", record, version) for version in ("r26", "r25", "fixed")] == [1, 1, 0]
    assert (VERIFIERS["ifbench"]("a boat", record), VERIFIERS["ifeval"]("a boat", record)) == (1, 0)


@pytest.mark.parametrize("options", [{"mode": "lose"}, {"level": "word"}, {"version": "r27"}])
def test_an_option_that_there_is_not_is_an_error(options):
    with pytest.raises(UserError, match="no mode|no version"):
        instructions("a", RECORD, **options)


def test_the_names_take_options_in_an_expression():
    judge = verifier("instructions('r26', 'loose', 'prompt')")
    assert judge('Sure, here:\n"ebb"', RECORD) == 1
