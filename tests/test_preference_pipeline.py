"""The preference pipeline over a stub server: selection, pools, ratings, pairs; faults are counted and retried."""

import collections
import json
import random

import pytest
from faulty_server import faulty_server
from preference_pipeline import FILES, digest, no_row_twice, recipe, reply_to, rows, run, seeds

from easylm_jax.config import Binarise, PoolModel, Respond, SelfInstruct, Source
from easylm_jax.decode import endpoint
from easylm_jax.rewards.instructions import check_instruction
from easylm_jax.synthesize import binarise, personas, rate, respond, self_instruct
from models.errors import UserError

FILE = Source("x.jsonl")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The files of a run over a server without faults, and what it was asked."""
    folder = tmp_path_factory.mktemp("pipeline")
    seeds(folder)
    with faulty_server(reply_to, whole=True) as server:
        root = run(recipe(folder, server.url), folder / "runs")
        return folder, root, [body for _, _, body in server.asked]


def test_prompts_are_reused_unused_and_instructed_each_once(clean):
    _, root, _ = clean
    prompts = rows(root / "prompts/prompts.jsonl")
    by_part = collections.Counter(row["part"] for row in prompts)
    assert by_part == {"reused": 6, "instructed": 4, "unused": 8}
    number = {row["id"]: int(row["messages"][0]["content"].split()[1]) for row in prompts}
    assert len(set(number.values())) == len(prompts)
    assert all(number[row["id"]] >= 12 for row in prompts if row["part"] == "unused")
    for row in prompts:
        assert (row["part"] == "instructed") == ("ground_truth" in row) == (row["reference"] is None)
        if "ground_truth" in row:
            (truth,) = json.loads(row["ground_truth"])
            check_instruction(truth["instruction_id"][0], "some text", truth["kwargs"][0])  # arguments are whole


def test_each_prompt_has_its_own_models_and_the_one_that_always_answers(clean):
    _, root, _ = clean
    answered = rows(root / "respond/responses.jsonl")
    assert len(answered) == 18
    drawn = collections.Counter()
    for row in answered:
        models = [one["model"] for one in row["responses"]]
        assert len(set(models)) == len(models) == 3 + (row["reference"] is not None) and "own" in models
        assert all(one["on_policy"] == (one["model"] == "own") for one in row["responses"])
        drawn.update(models)
    assert all(drawn[name] >= 6 for name in ("alpha", "beta", "gamma")) and drawn["own"] == 18


def test_pairs_follow_the_ratings_and_shares_of_policies_hold(clean):
    _, root, _ = clean
    rated = {row["id"]: row for row in rows(root / "rate-a/ratings.jsonl")}
    assert any(row["replies"]["honesty"] == "I cannot say." for row in rated.values()) or any(
        row["unread"] for row in rated.values()
    )
    for name in ("pairs", "on", "half"):
        made = rows(root / name / "pairs.jsonl")
        assert made and all(pair["chosen_rating"] > pair["rejected_rating"] for pair in made)
        assert all(pair["chosen"][:-1] == pair["rejected"][:-1] for pair in made)
    on = [pair["chosen_on_policy"] or pair["rejected_on_policy"] for pair in rows(root / "on/pairs.jsonl")]
    assert all(on)
    half = [pair["chosen_on_policy"] or pair["rejected_on_policy"] for pair in rows(root / "half/pairs.jsonl")]
    assert 2 * sum(half) == len(half)
    best = {row["id"]: row for row in rows(root / "pairs/best.jsonl")}
    for pair in rows(root / "pairs/pairs.jsonl"):
        assert best[pair["id"]]["messages"] == pair["chosen"]


def test_synthetic_prompts_are_checked_and_instructions_differ(clean):
    _, root, _ = clean
    kept, dropped = rows(root / "persona/sft.jsonl"), rows(root / "persona/dropped.jsonl")
    assert len(kept) + len(dropped) == 8 and all("####" in row["messages"][1]["content"] for row in kept)
    assert {row["dropped"] for row in dropped} <= {"no final answer", "repeated"}
    own = rows(root / "self/sft.jsonl")
    assert 0 < len(own) <= 6 and all(len(row["messages"]) == 2 for row in own)
    texts = [row["messages"][0]["content"].split() for row in own]
    assert all(self_instruct.rouge_l(a, b) < 0.7 for i, a in enumerate(texts) for b in texts[:i])


def test_over_a_faulty_server_the_files_are_the_same_and_no_row_is_there_twice(clean, tmp_path, monkeypatch):
    folder, root, asked = clean
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)
    kinds = ("slow", "busy", "broken", "garbage", "prose", "cut", "hangup")

    def faults(body):
        chooser = random.Random(digest(body))
        return [chooser.choice(kinds) for _ in range(chooser.choice((0, 0, 1, 2)))]

    with faulty_server(reply_to, whole=True, faults=faults, slow=0.3) as server:
        again = run(recipe(folder, server.url, timeout=0.2, concurrency=8), tmp_path)
        answered = collections.Counter(name for name, _, _ in server.asked)
    for name in FILES:
        assert (again / name).read_bytes() == (root / name).read_bytes(), name
    no_row_twice(again)
    bodies = {json.dumps(body, sort_keys=True) for body in asked}
    assert set(answered) == bodies and max(answered.values()) <= 3  # as often as it failed, and once more
    ledgers = [json.loads((again / f"rate-{judge}/stats.json").read_text())["asked"] for judge in "ab"]
    assert all(own["answered"] == own["requests"] for own in ledgers)
    assert sum(own.get(kind, 0) for own in ledgers for kind in ("timed_out", "rate_limited", "garbage", "closed")) > 0


def test_a_prompt_that_a_model_does_not_answer_is_dropped_with_the_reason(tmp_path):
    seeds(tmp_path)

    def faults(body):
        return ["broken"] * 9 if body["model"] == "alpha" and "question 1 " in body["messages"][-1]["content"] else []

    with faulty_server(reply_to, whole=True, faults=faults) as server:
        made = recipe(tmp_path, server.url, attempts=1)
        stages = (Respond("respond", prompts=Source(str(tmp_path / "sft.jsonl")), each=4, pool=made.stages[1].pool),)
        root = run(type(made)("p", stages), tmp_path / "runs")
    (dropped,) = rows(root / "respond/dropped.jsonl")
    assert dropped["id"] == 1 and dropped["dropped"] == "alpha: no answer"
    assert sorted(row["id"] for row in rows(root / "respond/responses.jsonl")) == [0, *range(2, 12)]


@pytest.mark.parametrize(
    "reply, found",
    [("Answer 1\nRating: 4\nReason: x\n\nAnswer 2\nRating: 2.5", [4, 2.5]),
     ("**Text 1**\nRating: 4\n\n**Text 2**\nRating: N/A", [4, None]),
     ("Answer 2: Rating: 3\nAnswer 1: Rating: 5", [5, 3]), ("Answer 1\nRating: 9\n\nAnswer 3\nRating: 1", [None, None]),
     ("Answer 1\nRating: 4\nAnswer 1\nRating: 2", [None, None]), ("Both are good, 5 of 5.", [None, None]),
     ("", [None, None]),
     ("Answer 1\nno number\n\nAnswer 2\nRating: 3", [None, 3])],
)  # fmt: skip
def test_ratings_are_read_or_missing(reply, found):
    assert rate.ratings_of(reply, 2) == found


def test_what_is_chosen_and_rejected():
    rng = random.Random(0)
    texts = ["a", "b", "c", "c"]
    drawn = {binarise.decided([[5, 3, 4, 4]], texts, "lower", rng)[1] for _ in range(50)}
    assert drawn == {(0, 1), (0, 2), (0, 3)}
    assert binarise.decided([[3, 3, 3, 3]], texts, "lower", rng)[2] == "all tied"
    assert binarise.decided([[3, 3, 3, 3]], texts, "any", rng)[1] is not None
    assert binarise.decided([[1, 2, 3]], ["x"] * 3, "lower", rng)[2] == "all the same"
    assert binarise.decided([[None, None, 3]], ["a", "b", "c"], "lower", rng)[2] == "fewer than two rated"
    votes = [[5, 1, 2], [4, 1, 5], [5, 4, 1]]  # two of three judges put the first above
    assert binarise.decided(votes, ["a", "b", "c"], "lower", rng)[0] == 0
    row = {"responses": [{"ratings": {"x": 4.0, "y": None}}, {"ratings": {"x": None, "y": None}}]}
    assert binarise.means_of(row) == [4.0, None]  # "N/A" is missing, not -1


def test_relaxed_answers_and_lists_of_instructions():
    truth = json.dumps([{"instruction_id": ["punctuation:no_comma"], "kwargs": [None]}])
    assert personas.follows("no commas here", truth) and not personas.follows("well, one", truth)
    assert self_instruct.items_of("Name a tree\n10. Sort these words\n11. Cut of", cut=True) == [
        "Name a tree",
        "Sort these words",
    ]
    pool = [["describe", "the", "food", "of", "a", "town"]]
    asked = ("Describe the food of a city", "Draw a picture of the town hall", "Sing", "Tell me why rain falls")
    faults = [self_instruct.fault_of(text, pool, 0.7) for text in asked]
    assert faults == ["like another", "not for a text model", "length", None]


def test_wrong_settings_are_one_line(tmp_path):
    model = PoolModel("a", init="hf:x", always=True)
    for make, says in (
        (lambda: Respond("r", prompts=FILE, pool=(model, model)), "different names"),
        (lambda: Respond("r", prompts=FILE, pool=(model,), each=2), "each must be from 1"),
        (lambda: PoolModel("a"), "a model \\(init\\) or a server answers"),
        (lambda: Binarise("b", ratings=(FILE,), on_share=2.0), "on_share is a share"),
        (lambda: SelfInstruct("s", tasks=FILE, count=1), "a model \\(init\\) or a server writes"),
    ):
        with pytest.raises(UserError, match=says):
            make()
    stage = Respond("r", prompts=FILE, pool=tuple(PoolModel(n, init=f"hf:{n}") for n in "abcd"), each=2)
    assert len({tuple(respond.models_for(stage, i)) for i in range(200)}) == 12  # every ordered pair
