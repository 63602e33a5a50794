"""Best-of-N: the files say what the reward says, parts that are there are not made again, and no others are used."""

import json
import shutil

import numpy as np
import pytest
import rl_kit

from easylm_jax.config import BestOfN, Reward, Sampling
from easylm_jax.data.build import stage_cache
from easylm_jax.decode import rollout
from easylm_jax.synthesize import best_of_n
from easylm_jax.synthesize.batches import FinishedBatch
from models.errors import UserError


def stage(name, **more):
    fields = {
        "init": "sft", "data": rl_kit.prompts(rl_kit.home()), "batch": 4, "samples": 4, "limit": 10,
        "sampling": Sampling(rl_kit.NEW, slots=8), "reward": Reward(verifier="rl_kit:of_prompt", missing_end=None),
    }  # fmt: skip
    return BestOfN(name, **{**fields, **more})


STAGES = (
    stage("best"),
    stage("scored", reward=Reward(model="reward", missing_end=-2.5, gain=2.0, bias=1.0)),
    stage("greedy", sampling=Sampling(rl_kit.NEW, temperature=0.0, slots=8)),
    stage("of-reward", init="reward"),
)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    with rl_kit.devices(1):
        yield


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    it = rl_kit.experiment(tmp_path_factory.mktemp("best"), *STAGES)
    it.run(it.recipe.stage("best"))
    return it


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_every_answer_is_there_with_the_score_that_the_verifier_gives(ready):
    answers = read(ready.folder("best") / "answers.jsonl")
    cache = stage_cache(ready, ready.recipe.stage("best").data)
    assert [line["messages"] for line in answers] == [cache.record(i)["_messages"] for i in range(10)]
    for line in answers:
        record = {"_messages": line["messages"]}
        assert len(line["answers"]) == 4 and len(set(line["answers"])) > 1
        np.testing.assert_allclose(line["scores"], [rl_kit.of_prompt(a, record) for a in line["answers"]], atol=1e-6)


def test_best_answers_and_pairs_are_those_of_highest_and_lowest_score(ready):
    folder = ready.folder("best")
    answers, best, pairs = (read(folder / f"{name}.jsonl") for name in ("answers", "best", "pairs"))
    assert len(best) == 10
    expected = []
    for line, kept in zip(answers, best, strict=True):
        scores, texts = line["scores"], line["answers"]
        at = int(np.argmax(scores))
        reply = {"role": "assistant", "content": texts[at]}
        assert kept == {"messages": [*line["messages"], reply], "score": scores[at]}
        real = [i for i, text in enumerate(texts) if text.strip()]
        high, low = max(real, key=lambda i: scores[i]), min(real, key=lambda i: scores[i])
        if scores[high] > scores[low]:
            expected.append((line["messages"], texts[high], scores[high] - scores[low]))
    assert len(pairs) == len(expected) > 5
    for pair, (messages, chosen, margin) in zip(pairs, expected, strict=True):
        assert pair["chosen"][:-1] == pair["rejected"][:-1] == messages
        assert pair["chosen"][-1] == {"role": "assistant", "content": chosen}
        assert pair["margin"] == pytest.approx(margin) and margin > 0
        of_pair = [rl_kit.of_prompt(side[-1]["content"], {"_messages": messages}) for side in pair.values()
                   if isinstance(side, list)]  # fmt: skip
        assert of_pair[0] - of_pair[1] == pytest.approx(margin, abs=1e-6)
    metrics = ready.done(ready.recipe.stage("best"))["metrics"]
    top = [max(line["scores"]) for line in answers]
    assert (metrics["prompts"], metrics["pairs"]) == (10, len(pairs))
    assert metrics["best_score"] == pytest.approx(np.mean(top))
    assert metrics["best_score_stderr"] == pytest.approx(np.std(top, ddof=1) / 10**0.5)
    assert metrics["score"] == pytest.approx(np.mean([line["scores"] for line in answers]))


def test_only_a_part_that_is_missing_is_made_again_and_it_is_the_same(ready, tmp_path):
    out = shutil.copytree(ready.out, tmp_path / "runs")
    again = type(ready)(ready.recipe, out)
    folder = again.folder("best")
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    parts = sorted((folder / "parts").glob("*.jsonl"))
    assert len(parts) == 3
    times = {path: path.stat().st_mtime_ns for path in (parts[0], parts[2])}
    parts[1].unlink()
    (folder / "done.json").unlink()
    again.run(again.recipe.stage("best"))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {path: path.read_bytes() for path in folder.rglob("*.jsonl")} == before


@pytest.mark.parametrize("what", ("other settings", "a model trained anew"))
def test_parts_of_something_else_are_not_used(what, ready, tmp_path):
    out = shutil.copytree(ready.out, tmp_path / "runs")
    changed = stage("best", seed=1) if what == "other settings" else stage("best")
    again = type(ready)(type(ready.recipe)("rl", (*ready.recipe.stages[:4], changed)), out)
    folder = again.folder("best")
    (folder / "done.json").unlink()
    if what == "a model trained anew":
        done = again.folder("sft") / "done.json"
        done.write_text(done.read_text().replace('"seconds": ', '"seconds": 1'))
    before = (folder / "answers.jsonl").read_bytes()
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "parts").glob("*.jsonl")}
    again.run(changed)
    assert all(path.stat().st_mtime_ns != times[path.name] for path in (folder / "parts").glob("*.jsonl"))
    assert ((folder / "answers.jsonl").read_bytes() == before) == (what != "other settings")


def test_with_a_reward_model_the_best_is_what_it_likes_best(ready, monkeypatch):
    """Its score is scaled, and an answer that never ended has `missing_end` in place of it."""
    rollouts, original = [], rollout.sample

    def keep(*arguments, **more):
        rollouts.append(original(*arguments, **more))
        return rollouts[-1]

    monkeypatch.setattr(rollout, "sample", keep)
    ready.run(ready.recipe.stage("scored"))
    tokenizer = rl_kit.made().tokenizer()
    scores = np.concatenate([np.where(made.ended, made.scores, -2.5) * 2 + 1 for made in rollouts]).reshape(10, 4)
    texts = [rollout.text_of(made, row, tokenizer) for made in rollouts for row in range(made.rows)]
    best = read(ready.folder("scored") / "best.jsonl")
    assert np.concatenate([made.scores for made in rollouts]).std() > 0
    for number, line in enumerate(best):
        at = int(scores[number].argmax())
        assert line["messages"][-1]["content"] == texts[4 * number + at]
        assert line["score"] == pytest.approx(scores[number, at], abs=1e-6)


def test_an_answer_may_hold_any_character(tmp_path):
    """Line separators of Unicode are not the end of a line of JSON."""
    texts = ["one\u2028two", "three\x85four", "five\x0b\x1cand\tsix"]
    line = {"messages": [{"role": "user", "content": "say\u2029it"}], "answers": texts, "scores": [0.0, 1.0, 0.5]}
    (tmp_path / "part").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    facts = best_of_n._write_files(tmp_path, [FinishedBatch(tmp_path / "part", 1)], 1)
    assert (facts["prompts"], facts["pairs"]) == (1, 1)
    assert read(tmp_path / "answers.jsonl") == [line]
    (pair,) = read(tmp_path / "pairs.jsonl")
    assert (pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]) == (texts[1], texts[0])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("greedy", "stage greedy: 4 greedy samples are all the same; set a temperature above 0"),
        (
            "of-reward",
            "stage of-reward: init reward is a reward model (scalar head), but a language model is needed here; "
            "name the policy",
        ),
    ],
)
def test_what_cannot_be_sampled_is_told_in_one_line(name, says, ready):
    with pytest.raises(UserError) as told:
        ready.run(ready.recipe.stage(name))
    assert str(told.value) == says


def test_more_pairs_of_a_prompt_match_the_best_with_the_worst_and_use_no_answer_twice():
    scores, answers = [0.1, 0.9, 0.5, 0.7, 0.5, 1.0], ["a", "b", "c", "d", "c ", " "]
    assert best_of_n.pairs_of(scores, answers, 1) == [(1, 0)]
    assert best_of_n.pairs_of(scores, answers, 9) == [(1, 0), (3, 2)]  # 4 says what 2 does, 5 says nothing
    assert best_of_n.pairs_of([0.5, 0.5, 0.5], ["a", "b", "c"], 9) == []
    assert best_of_n.pairs_of([1.0], ["a"], 9) == best_of_n.pairs_of([], [], 9) == []
