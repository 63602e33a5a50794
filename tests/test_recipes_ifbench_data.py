"""Prompts of IF-RLVR: their instructions, numbers and rows, and what may not be among them."""

import json
import random
from collections import Counter

import pytest
from data_kit import assistant, user, write_jsonl

from easylm_jax.config import MakeData, Recipe
from easylm_jax.experiment import Experiment
from easylm_jax.rewards import VERIFIERS
from easylm_jax.rewards.instructions import REGISTRY, combine
from models.errors import UserError
from recipes.ifbench import data, small_data

LONG = "please write me a friendly letter to the harbour master about the missing rowing boat"


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """120 conversations in the form of the SFT mixture, one of them twice, one with a system turn."""
    rows = [{"messages": [user(f"tell me of port number {n}"), assistant(f"it is port {n}")]} for n in range(118)]
    rows.append(rows[3])
    rows.append({"messages": [{"role": "system", "content": "be kind"}, user(LONG), assistant("dear master")]})
    return str(write_jsonl(tmp_path_factory.mktemp("requests") / "mix.jsonl", rows))


def write(requests, **more):
    return data.write(1, **{"count": 50, "source": requests, "exclude": None, **more})["prompts.jsonl"]


def truth_of(row):
    (truth,) = json.loads(row["ground_truth"])
    return truth


def test_rows_have_the_form_of_the_published_set(requests):
    rows = write(requests, most=3)
    assert len(rows) == 50 and len({row["key"] for row in rows}) == 50
    for row in rows:
        truth = truth_of(row)
        assert row["dataset"] == "ifeval" and set(truth) == {"instruction_id", "kwargs"}
        (message,) = row["messages"]
        assert message["role"] == "user"
        texts = [
            REGISTRY[name].describe(**(given or {}))
            for name, given in zip(truth["instruction_id"], truth["kwargs"], strict=True)
        ]
        assert message["content"].endswith(" " + " ".join(texts)) and row["constraint"].split("\t") == texts
        assert 1 <= len(texts) <= 3 and combine.compatible(truth["instruction_id"])
        assert row["constraint_type"] == ("multi" if len(texts) > 1 else "single")
        assert {REGISTRY[name].suite for name in truth["instruction_id"]} <= {"iftrain", "ifeval"}


def test_prompts_are_a_function_of_the_seed_and_no_request_comes_twice(requests):
    rows = write(requests, count=119)
    assert rows == write(requests, count=119) != data.write(2, count=119, source=requests, exclude=None)
    with pytest.raises(UserError, match="has 119 usable requests, not 120"):
        write(requests, count=120)


def test_the_ground_truth_is_what_the_verifier_reads(requests):
    alone = {"source": requests, "exclude": None, "count": 118, "most": 1, "ifeval": 25}
    found = {}
    for seed in range(1, 4):
        for row in data.write(seed, **alone)["prompts.jsonl"]:
            found[truth_of(row)["instruction_id"][0]] = row
    row = found["punctuation:no_comma"]
    assert VERIFIERS["ifeval"]("ebb", row) == 1 and VERIFIERS["ifeval"]("ebb, flow", row) == 0
    assert len(found) == 54  # every instruction is drawn
    request = found["copy:copy"]["messages"][0]["content"].partition(" Copy this request")[0]
    assert VERIFIERS["ifeval"](request, found["copy:copy"]) == 1


def test_every_instruction_is_asked_for_as_often_as_is_said(requests):
    rows = write(requests, count=119, instances=3, most=4)
    counts = Counter(name for row in rows for name in truth_of(row)["instruction_id"])
    assert len(counts) == 54 and set(counts.values()) == {3}
    with pytest.raises(UserError, match="too few requests to ask for every instruction 300 times"):
        write(requests, count=119, instances=300)


def test_groups_are_left_out_and_ifevals_instructions_are_nested():
    ids = {count: set(data.instruction_ids(count)) for count in (0, 5, 10, 15, 20, 25)}
    assert [len(one) for one in ids.values()] == [29, 34, 39, 44, 49, 54]
    assert ids[5] < ids[10] < ids[15] < ids[20] < ids[25]
    left = data.instruction_ids(leave_out="keywords length_constraints")
    assert {name.partition(":")[0] for name in data.instruction_ids()} - {n.partition(":")[0] for n in left} == {
        "keywords", "length_constraints",
    }  # fmt: skip


@pytest.mark.parametrize("name", data.RANGES)
def test_ranges_are_the_tests_own_or_hold_them_or_lie_above(name):
    spans = {}
    for ranges in ("same", "wider", "different"):
        rng = random.Random(0)
        drawn = [data.arguments(rng, name, "tell me of tides", ranges) for _ in range(300)]
        for given in drawn:
            REGISTRY[name].describe(**given)
            assert given.get("nth_paragraph", 1) <= given.get("num_paragraphs", 1)
        for argument in data.RANGES[name]:
            values = [given[argument] for given in drawn]
            spans[ranges, argument] = (min(values), max(values))
    for argument, (low, high) in data.RANGES[name].items():
        (a, b), (c, d), (e, f) = (spans[ranges, argument] for ranges in ("same", "wider", "different"))
        assert low <= a <= b <= high < e <= f <= 2 * high
        assert low <= c and d <= 2 * high and (c <= high < d)


def test_the_samplers_of_the_instructions_stay_inside_the_ranges():
    """They follow the published data, and `RANGES` what the tests ask for."""
    rng = random.Random(3)
    for name, spans in data.RANGES.items():
        for _ in range(100):
            given = REGISTRY[name].sample_arguments(rng, "tell me of tides")
            assert all(low <= given[argument] <= high for argument, (low, high) in spans.items())


def test_turns_ask_to_rewrite_the_answer_of_the_data(requests):
    rows = write(requests, turns="multi")
    for row in rows:
        first, answer, again = row["messages"]
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant", "user"]
        assert answer["content"].startswith(("it is port", "dear master")) and first["content"] not in again["content"]
        assert again["content"].endswith(" ".join(row["constraint"].split("\t")))
        assert not any("prompt_to_repeat" in (given or {}) for given in truth_of(row)["kwargs"])
    mixed = [len(row["messages"]) for row in write(requests, turns="mix")]
    assert mixed.count(1) == mixed.count(3) == 25


def test_prompts_that_overlap_with_the_test_are_left_out(requests, tmp_path):
    test = [{"prompt": LONG + " and say it in two words."}, {"prompt": "Tell me of port number 7"}, {"prompt": "port"}]
    path = str(write_jsonl(tmp_path / "test.jsonl", test))
    rows = write(requests, exclude=path, count=117)
    texts = [row["messages"][0]["content"] for row in rows]
    assert not any(text.startswith(LONG) or text.startswith("tell me of port number 7 ") for text in texts)
    with pytest.raises(UserError, match="has 117 usable requests"):
        write(requests, exclude=path, count=118)


@pytest.mark.parametrize("shared, overlaps", [(7, False), (8, False), (10, False), (11, True), (20, True)])
def test_half_of_the_words_in_common_runs_are_too_much(shared, overlaps):
    prompt = [f"a{n}" for n in range(20)]
    other = [*prompt[:shared], *(f"b{n}" for n in range(20 - shared))]
    assert data.Overlap([" ".join(prompt)])(" ".join(other)) is overlaps
    assert data.Overlap([" ".join(other)])(" ".join(prompt)) is overlaps


def test_no_instruction_of_the_test_is_ever_trained_on():
    assert not {name for name in data.instruction_ids() if REGISTRY[name].suite == "ifbench"}


@pytest.mark.parametrize(
    "argument, message",
    [
        ({"ranges": "narrow"}, "no ranges 'narrow'"), ({"turns": "none"}, "turns 'none'"),
        ({"least": 3, "most": 2}, "least must be"), ({"ifeval": 26}, "between 0 and 25"),
        ({"leave_out": "keyword"}, "no group 'keyword'"), ({"instances": 0}, "at least 1"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_errors(requests, argument, message):
    with pytest.raises(UserError, match=message):
        write(requests, **argument)


def test_a_stage_calls_the_function_with_its_arguments(requests, tmp_path):
    arguments = {"count": 5, "most": 2, "source": requests, "exclude": None}
    stage = MakeData("prompts", function="recipes.ifbench.data:write", seed=4, arguments=arguments)
    it = Experiment(Recipe("made", (stage,)), tmp_path)
    it.run(stage)
    lines = (it.folder("prompts") / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == data.write(4, **arguments)["prompts.jsonl"]
    assert stage.arguments == (("count", 5), ("most", 2), ("source", requests), ("exclude", None))
    wrong = MakeData("wrong", function="recipes.ifbench.data:write", arguments={"number": 5})
    with pytest.raises(
        UserError, match="stage wrong: recipes.ifbench.data:write cannot be called with these arguments: .*'number'"
    ):
        Experiment(Recipe("made", (wrong,)), tmp_path).run(wrong)
    with pytest.raises(UserError, match="d.arguments"):
        MakeData("d", function="a:b", arguments={"x": [1]})


# The small recipe.


@pytest.mark.parametrize("pool", [small_data.TRAINED, small_data.OTHERS, (*small_data.TRAINED, *small_data.OTHERS)])
def test_answers_of_the_small_recipe_follow_the_instructions_that_they_are_given(pool):
    rng = random.Random(0)
    words = small_data.requests(rng, held_out=False)
    for _ in range(200):
        said = next(words)
        given = small_data.instructed(rng, pool)
        assert 1 <= len(given) <= 3 and set(given) <= set(pool)
        answer, row = small_data.answer(said, given), small_data.prompt(said, given)
        assert VERIFIERS["ifeval"](answer, row) == 1
        for name in given:  # each one is what makes the answer follow it
            rest = {other: own for other, own in given.items() if other != name}
            assert VERIFIERS["ifeval"](small_data.answer(said, rest), row) == pytest.approx(1 - 1 / len(given))


def test_the_small_recipes_prompts_are_held_out_by_their_words():
    files = small_data.write(1)
    assert {name: len(rows) for name, rows in files.items()} == {
        "pages.jsonl": 12_000, "sft.jsonl": 4_000, "sft_held_out.jsonl": 300, "prompts.jsonl": 4_000,
        "prompts_held_out.jsonl": 400, "prompts_others.jsonl": 200,
    }  # fmt: skip
    keys = {name: {row["key"] for row in rows} for name, rows in files.items() if name.startswith("prompts")}
    assert not keys["prompts.jsonl"] & (keys["prompts_held_out.jsonl"] | keys["prompts_others.jsonl"])
    asked = {name: {one for row in files[name] for one in truth_of(row)["instruction_id"]} for name in keys}
    assert asked["prompts.jsonl"] == asked["prompts_held_out.jsonl"] == set(small_data.TRAINED)
    assert asked["prompts_others.jsonl"] == set(small_data.OTHERS)


def test_requests_are_also_questions_and_what_is_no_request_is_passed_over(tmp_path):
    rows = [{"question": "how many?", "answer": "two"}, {"messages": []}, {"messages": [assistant("no user")]},
            {"prompt": "name one"}, {"text": "a page"}, {"prompt": "  "}]  # fmt: skip
    path = str(write_jsonl(tmp_path / "mixed.jsonl", rows))
    made = data.write(1, count=2, source=path, exclude=None)["prompts.jsonl"]
    assert {row["messages"][0]["content"].split("? ")[0].split(" one")[0] for row in made} == {"how many", "name"}
    with pytest.raises(UserError, match="has 2 usable requests, not 3"):
        data.write(1, count=3, source=path, exclude=None)
