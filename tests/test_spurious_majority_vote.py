"""Majority-vote labels: counts, ties, variants of label noise, and the stage that makes them."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import rl_kit

from easylm_jax.config import MajorityVote, Sampling
from easylm_jax.data.build import stage_cache
from easylm_jax.synthesize import majority_vote
from models.errors import UserError


def first_word(response):
    return response.split()[0] if response.split() else ""


def starts_with_one(response, record):
    return float(first_word(response) == "one")


def prompt(number, answers, code=0.0, samples=8):
    return {
        "messages": [{"role": "user", "content": f"question {number}"}],
        "columns": {"answer": f"t{number}", "id": number},
        "samples": samples, "code_share": code, "answers": answers,
    }  # fmt: skip


VOTED = [
    prompt(0, [["t0", 5, True], ["x", 2, False], ["y", 1, False]]),
    prompt(1, [["x", 4, False], ["t1", 3, True]], code=0.25),
    prompt(2, [["z", 3, False]], code=0.5),
    prompt(3, [], code=1.0),
]


def ids(variant):
    return [(row["id"], row["answer"], row["correct"]) for row in majority_vote.labelled(VOTED, variant)]


def test_labels_are_the_most_frequent_answers_and_truths_stay_beside():
    rows = majority_vote.labelled(VOTED, "labelled")
    assert rows[1] == {"messages": VOTED[1]["messages"], "answer": "x", "id": 1, "truth": "t1", "agreement": 0.5,
                       "correct": False}  # fmt: skip
    assert ids("labelled") == [(0, "t0", True), (1, "x", False), (2, "z", False)]  # nobody answered the last
    other = majority_vote.labelled([{**VOTED[0], "columns": {"ground_truth": "t0"}}], "labelled", "ground_truth")
    assert (other[0]["ground_truth"], other[0]["truth"]) == ("t0", "t0")


def test_variants_are_the_noise_that_they_are_called():
    assert ids("incorrect") == [(1, "x", False), (2, "z", False)]
    assert ids("truths") == [(1, "t1", True), (2, "t2", True)]
    assert ids("rank-0") == ids("labelled") and ids("rank-1") == [(0, "x", False), (1, "t1", True)]
    assert ids("rank-2") == [(0, "y", False)] and ids("rank-3") == []
    assert ids("least-voted") == [(0, "y", False), (1, "t1", True), (2, "z", False)]
    assert ids("unsolved") == [(2, "z", False)]
    assert ids("code-at-most-0") == [(0, "t0", True)] and len(ids("code-at-most-25")) == 2


def test_shuffled_labels_are_dealt_to_other_prompts_the_same_way_every_time():
    voted = [prompt(n, [[f"t{n}", 6, True], [f"t{n + 1}", 2, False]]) for n in range(50)]
    rows = majority_vote.labelled(voted, "shuffled")
    order = list(range(50))
    random.Random(42).shuffle(order)
    assert [row["answer"] for row in rows] == [f"t{n}" for n in order]
    for n, row in enumerate(rows):
        share = {n: 0.75, n + 1: 0.25}.get(order[n], 0)
        assert (row["correct"], row["agreement"]) == (order[n] == n, share)


def test_summary_counts_labels_and_answers():
    facts = majority_vote.summary(VOTED)
    assert (facts["prompts"], facts["labelled"], facts["incorrect"]) == (4, 3, 2)
    assert facts["correct"] == pytest.approx(1 / 3) and facts["pass_rate"] == pytest.approx((5 + 3) / 8 / 4)
    assert facts["agreement"] == pytest.approx((5 + 4 + 3) / 8 / 3) and facts["code_share"] == pytest.approx(1.75 / 4)
    assert majority_vote.summary([]) == {"prompts": 0, "labelled": 0, "incorrect": 0}


@pytest.mark.parametrize("variant", ("rank", "rank-x", "code-at-most", "best"))
def test_an_unknown_variant_is_told(variant):
    with pytest.raises(UserError, match=f"stage mv: no labels '{variant}'"):
        stage(variants=(variant,))


def stage(**more):
    fields = {
        "init": "sft", "data": rl_kit.prompts(rl_kit.home(), keep=("ground_truth",)), "samples": 6, "batch": 4,
        "limit": 10, "sampling": Sampling(rl_kit.NEW, slots=8), "extract": f"{__name__}:first_word",
        "check": f"{__name__}:starts_with_one", "label": "ground_truth", "variants": ("rank-1", "shuffled"),
    }  # fmt: skip
    return MajorityVote("mv", **{**fields, **more})


def test_the_stage_counts_what_the_policy_writes(tmp_path):
    with rl_kit.devices(1):
        ready = rl_kit.experiment(tmp_path, stage())
        ready.run(ready.recipe.stage("mv"))
    folder = ready.folder("mv")
    done = ready.done(ready.recipe.stage("mv"))
    assert done["files"] == [f"{name}.jsonl" for name in ("votes", "labelled", "incorrect", "rank-1", "shuffled")]
    lines = {name: list(map(json.loads, (folder / name).read_text().splitlines())) for name in done["files"]}
    voted = lines["votes.jsonl"]
    records = [stage_cache(ready, stage().data).record(i) for i in range(10)]
    assert [line["columns"] for line in voted] == [{"ground_truth": record["ground_truth"]} for record in records]
    assert [line["messages"] for line in voted] == [record["_messages"] for record in records]
    for line in voted:
        counts = [n for _, n, _ in line["answers"]]
        assert counts == sorted(counts, reverse=True) and sum(counts) <= 6
        assert all(right == (text == "one") and " " not in text for text, _, right in line["answers"])
    assert len(Counter(text for line in voted for text, *_ in line["answers"])) > 2
    assert lines["incorrect.jsonl"] == majority_vote.labelled(voted, "incorrect", "ground_truth")
    assert all(row["truth"].isdigit() and row["ground_truth"] != row["truth"] for row in lines["labelled.jsonl"])
    shares = [sum(n for _, n, right in line["answers"] if right) / 6 for line in voted]
    assert done["metrics"]["pass_rate"] == pytest.approx(np.mean(shares))
