"""The table says what the verdicts say, divergences are those of the models, and a stopped evaluation goes on."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import rl_kit

import models
from easylm_jax.config import Entry, Evaluate, Published, Recipe, Sampling, Task
from easylm_jax.data.build import stage_cache
from easylm_jax.data.tokenizer import restrict_vocab
from easylm_jax.decode import rollout
from easylm_jax.evaluate import stage as evaluation
from easylm_jax.evaluate.statistics import difference, mean
from easylm_jax.experiment import Experiment
from easylm_jax.report.tables import ablation, as_text
from easylm_jax.rewards.scorer import RewardScorer
from models.errors import UserError

PROMPTS = rl_kit.prompts(rl_kit.home())
GREEDY = Task("greedy", PROMPTS, rl_kit.VERIFIER, Sampling(rl_kit.NEW, temperature=0.0, slots=8), limit=10)
SAMPLED = Task(
    "sampled", PROMPTS, "rl_kit:of_prompt", Sampling(rl_kit.NEW, slots=8), samples=3, limit=7,
    also=(("twice", "2 * 'rl_kit:of_prompt'"), ("e", rl_kit.VERIFIER)),
)  # fmt: skip
LIKED = Task("liked", PROMPTS, "rl_kit:of_prompt", Sampling(rl_kit.NEW, slots=8), samples=3, limit=7, best_of="reward")
ENTRIES = (Entry("base", ("pretrain",)), Entry("both", ("sft", "pretrain"), over="base"), Entry("fine", ("sft",)))
TABLE = Evaluate(
    "table", title="Judged", tasks=(GREEDY, SAMPLED), entries=ENTRIES, reference="sft", kl_prompts=6, seed=3,
    published=(Published("fine", "greedy", 12.5, "Table 1"),),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    with rl_kit.devices(1), rl_kit.compiled_programs():
        yield


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    it = rl_kit.experiment(tmp_path_factory.mktemp("evaluate"), TABLE)
    it.run(TABLE)
    return it


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def of_models(ready):
    return {name: read(ready.folder("table") / "models" / f"{name}.json") for name in ("sft", "pretrain")}


def test_the_table_holds_what_follows_from_the_models_files_by_hand(ready):
    table, files = read(ready.root / "table.json"), of_models(ready)
    assert table == read(ready.folder("table") / "table.json")
    rows = {row["method"]: row for row in table["rows"]}
    assert [row["method"] for row in table["rows"]] == ["base", "both", "fine"]
    scores = {name: [np.array(file["tasks"][task]["scores"]) for task in ("greedy", "sampled")]
              for name, file in files.items()}  # fmt: skip
    assert [len(part) for part in scores["sft"]] == [10, 7]
    for method, name in (("base", "pretrain"), ("fine", "sft")):
        means = [part.mean() for part in scores[name]]
        errors = [part.std(ddof=1) / len(part) ** 0.5 for part in scores[name]]
        row = rows[method]
        assert row["score"] == pytest.approx(sum(means) / 2)
        assert row["stderr"] == pytest.approx((errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2)
        assert row["interval"] == pytest.approx(
            [row["score"] - 1.959964 * row["stderr"], row["score"] + 1.959964 * row["stderr"]]
        )
        for at, task in enumerate(("greedy", "sampled")):
            assert row["scores"][task] == pytest.approx({"score": means[at], "stderr": errors[at]})
        assert (row["n"], row["seeds"], row["over"]) == (17, 1, None)
        assert row["length"] == pytest.approx(np.mean([part["length"] for part in files[name]["tasks"].values()]))
    # Two seeds: the spread of prompts and that of seeds both count.
    variances, values = [], []
    for mine, other in zip(scores["sft"], scores["pretrain"], strict=True):
        values.append((mine.mean() + other.mean()) / 2)
        prompts = ((mine + other) / 2).var(ddof=1) / len(mine)
        seeds = np.var([mine.mean(), other.mean()], ddof=1) / 2
        variances.append(prompts + seeds)
    both = rows["both"]
    assert both["score"] == pytest.approx(np.mean(values)) and both["seeds"] == 2
    assert both["stderr"] == pytest.approx(sum(variances) ** 0.5 / 2)
    # The difference is taken prompt by prompt, on the same prompts: (sft + pretrain) / 2 − pretrain.
    apart, variances = [], []
    for mine, other in zip(scores["sft"], scores["pretrain"], strict=True):
        paired = (mine + other) / 2 - other
        apart.append(paired.mean())
        seeds = np.var([mine.mean(), other.mean()], ddof=1) / 2
        variances.append(paired.var(ddof=1) / len(paired) + seeds)
    assert both["over"]["method"] == "base"
    assert both["over"]["difference"] == pytest.approx(np.mean(apart))
    assert both["over"]["stderr"] == pytest.approx(sum(variances) ** 0.5 / 2)
    assert rows["fine"]["published"] == {"greedy": 12.5} and rows["base"]["published"] is None
    assert table["tasks"] == [
        {"name": "greedy", "prompts": 10, "metric": rl_kit.VERIFIER, "samples": 1},
        {"name": "sampled", "prompts": 7, "metric": "rl_kit:of_prompt", "samples": 3},
    ]


def test_a_score_can_be_that_of_some_tasks_alone(ready, tmp_path):
    some = dataclasses.replace(TABLE, average=("sampled",))
    it = rl_kit.experiment(tmp_path, some)
    shutil.copytree(ready.folder("table") / "models", it.folder("table") / "models")  # nothing is judged again
    it.run(some)
    table, whole = read(it.root / "table.json"), read(ready.root / "table.json")
    assert table["average"] == ["sampled"] and "average" not in whole
    for row, other in zip(table["rows"], whole["rows"], strict=True):
        assert row["scores"] == other["scores"]
        assert row["score"] == row["scores"]["sampled"]["score"] and row["n"] == 7
        assert row["stderr"] == pytest.approx(row["scores"]["sampled"]["stderr"])
    base, both, _ = table["rows"]
    assert both["over"]["difference"] == pytest.approx(both["score"] - base["score"])
    assert "Score: sampled." in as_text(ablation(table))
    with pytest.raises(UserError, match="average names 'other', which is no task"):
        dataclasses.replace(TABLE, average=("other",))


def test_further_columns_are_of_the_same_answers_and_leave_the_score_alone(ready):
    rows = {row["method"]: row for row in read(ready.root / "table.json")["rows"]}
    for method, name in (("base", "pretrain"), ("fine", "sft")):
        task = of_models(ready)[name]["tasks"]["sampled"]
        np.testing.assert_allclose(task["also"]["twice"], 2 * np.array(task["scores"]))
        assert (np.array(task["also"]["pass@3"]) >= task["scores"]).all()
        assert set(rows[method]["scores"]) == {"greedy", "sampled", "sampled twice", "sampled e", "sampled pass@3"}
        assert rows[method]["scores"]["sampled e"]["score"] == pytest.approx(np.mean(task["also"]["e"]))


def test_scores_are_the_verdicts_on_the_answers_that_are_shown(ready):
    files = of_models(ready)
    assert files["sft"]["tasks"]["greedy"]["samples"] != files["pretrain"]["tasks"]["greedy"]["samples"]
    for file in files.values():
        found = file["tasks"]["greedy"]
        for sample, score in zip(found["samples"], found["scores"][: len(found["samples"])], strict=True):
            assert sample["score"] == score == rl_kit.share_of_e(sample["response"], {})
        found = file["tasks"]["sampled"]
        assert len(found["samples"]) == 7 and found["scores"] != [sample["score"] for sample in found["samples"]]
        for sample in found["samples"]:  # the first of three answers
            assert sample["score"] == rl_kit.of_prompt(sample["response"], {"_messages": sample["prompt"]})
    with open(ready.folder("table") / "samples.jsonl", encoding="utf-8") as lines:
        shown = [json.loads(line) for line in lines]
    assert {(line["method"], line["stage"]) for line in shown} == {
        ("base", "pretrain"),
        ("both", "sft"),
        ("fine", "sft"),
    }
    assert shown[0]["prompt"] == files["pretrain"]["tasks"]["greedy"]["samples"][0]["prompt"][-1]["content"]


def test_the_divergence_of_the_reference_from_itself_is_zero_and_another_models_is_its_own(ready):
    rows = {row["method"]: row for row in read(ready.root / "table.json")["rows"]}
    files = of_models(ready)
    assert files["sft"]["kl"] == [0.0] * 6 and rows["fine"]["kl"] == rows["fine"]["kl_stderr"] == 0
    given = np.array(files["pretrain"]["kl"])
    assert rows["base"]["kl"] == pytest.approx(given.mean()) and given.mean() > 1
    assert rows["base"]["kl_stderr"] == pytest.approx(given.std(ddof=1) / 6**0.5)
    # The same answers again, their probabilities from whole logits.
    params = {name: rl_kit.nested_params(ready, name) for name in ("sft", "pretrain")}
    model, tokenizer = models.build(rl_kit.MODEL), rl_kit.made().tokenizer()
    cache = stage_cache(ready, PROMPTS)
    made = rollout.sample(
        rollout.Engine(restrict_vocab(model, tokenizer), slots=8), params["pretrain"], cache.read(np.arange(6)),
        Sampling(rl_kit.NEW), samples=1, seed=3, tokenizer=tokenizer, end_ids=rollout.end_ids(cache, tokenizer),
    )  # fmt: skip
    columns = rollout.columns_of(made)
    total = 0.0
    for name, sign in (("pretrain", 1), ("sft", -1)):
        logits = models.logits(model, params[name], columns["tokens"], segment_ids=columns["segment_ids"])
        logprobs = np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)
        taken = np.take_along_axis(logprobs, columns["targets"][..., None], axis=-1)[..., 0]
        total = total + sign * (taken * columns["mask"]).sum(axis=1)
    np.testing.assert_allclose(given, total, atol=1e-4)


def test_an_evaluation_that_was_broken_off_keeps_the_models_it_had_judged(ready, tmp_path, monkeypatch):
    it = Experiment(ready.recipe, shutil.copytree(rl_kit.made().out, tmp_path / "runs"))
    judged, original = [], evaluation._evaluate_model

    def breaks(stage, name, *rest):
        judged.append(name)
        if judged == ["pretrain", "sft"]:
            raise KeyboardInterrupt
        return original(stage, name, *rest)

    monkeypatch.setattr(evaluation, "_evaluate_model", breaks)
    with pytest.raises(KeyboardInterrupt):
        it.run(TABLE)
    folder = it.folder("table") / "models"
    assert [path.name for path in folder.iterdir()] == ["pretrain.json"] and not (it.root / "table.json").exists()
    time = (folder / "pretrain.json").stat().st_mtime_ns
    it.run(TABLE)
    assert judged == ["pretrain", "sft", "sft"] and (folder / "pretrain.json").stat().st_mtime_ns == time
    tables = [read(one.root / "table.json") for one in (it, ready)]
    assert tables[0]["rows"] == tables[1]["rows"]


def test_a_model_that_was_trained_anew_is_judged_anew_and_no_other(ready, tmp_path, monkeypatch):
    it = Experiment(ready.recipe, shutil.copytree(ready.out, tmp_path / "runs"))
    done = it.folder("pretrain") / "done.json"
    done.write_text(done.read_text().replace('"seconds": ', '"seconds": 1'))
    (it.folder("table") / "done.json").unlink()
    judged, original = [], evaluation._evaluate_model
    monkeypatch.setattr(
        evaluation, "_evaluate_model", lambda stage, name, *rest: judged.append(name) or original(stage, name, *rest)
    )
    it.run(TABLE)
    assert judged == ["pretrain"]


def test_best_of_n_is_judged_by_the_answer_that_the_reward_model_likes_best(ready, tmp_path, monkeypatch):
    stage = Evaluate("liked", title="t", tasks=(LIKED,), entries=(Entry("fine", ("sft",)),))
    made, original = [], RewardScorer.__call__

    def keep(self, rollouts):
        line = original(self, rollouts)
        made.append((rollouts, rollouts.scores))
        return line

    monkeypatch.setattr(RewardScorer, "__call__", keep)
    it = Experiment(Recipe("rl", (*ready.recipe.stages[:4], stage)), shutil.copytree(ready.out, tmp_path / "runs"))
    it.run(stage)
    ((rollouts, liked),) = made
    tokenizer, cache = rl_kit.made().tokenizer(), stage_cache(it, PROMPTS)
    scores = [rl_kit.of_prompt(rollout.text_of(rollouts, row, tokenizer), cache.record(row // 3)) for row in range(21)]
    best = liked.reshape(7, 3).argmax(axis=1)
    found = read(it.folder("liked") / "models" / "sft.json")["tasks"]["liked"]
    np.testing.assert_allclose(found["scores"], np.array(scores).reshape(7, 3)[np.arange(7), best])
    assert len(set(best)) > 1
    for number, sample in enumerate(found["samples"]):  # what is shown is what was judged
        assert sample["response"] == rollout.text_of(rollouts, 3 * number + best[number], tokenizer)
        assert sample["score"] == found["scores"][number]


def test_a_table_written_on_a_mesh_of_another_shape_is_the_same(ready, tmp_path):
    stage = Evaluate("split", title="t", tasks=(GREEDY, SAMPLED), entries=(Entry("fine", ("sft",)),), seed=3)
    recipe = Recipe("rl", (*ready.recipe.stages[:4], stage), mesh="fsdp=2,cp=2", decode_mesh="dp=-1,tp=2")
    it = Experiment(recipe, shutil.copytree(rl_kit.made().out, tmp_path / "runs"))
    with rl_kit.devices(4):
        it.run(stage)
    found, want = (of["tasks"] for of in (read(it.folder("split") / "models" / "sft.json"), of_models(ready)["sft"]))
    for name in ("greedy", "sampled"):
        assert found[name]["scores"] == want[name]["scores"]


def refusing(stage, ready, tmp_path):
    it = Experiment(Recipe("rl", (*ready.recipe.stages[:4], stage)), tmp_path / "runs")
    shutil.copytree(rl_kit.made().out, it.out)
    with pytest.raises(UserError) as told:
        it.run(stage)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_what_cannot_be_judged_is_told_in_one_line(ready, tmp_path):
    def table(task, *entries):
        return Evaluate("bad", title="t", tasks=(task,), entries=entries or (Entry("fine", ("sft",)),))

    def changed(task, **more):
        return evaluation.dataclasses.replace(task, **more)

    many = changed(GREEDY, samples=3)
    assert "task greedy: 3 greedy samples are all the same" in refusing(table(many), ready, tmp_path / "a")
    unknown = table(changed(GREEDY, verifier="no_such"))
    assert refusing(unknown, ready, tmp_path / "b").startswith("reward: no verifier 'no_such'")
    liked = table(GREEDY, Entry("reward", ("reward",)))
    assert "is a reward model (scalar head), which cannot generate" in refusing(liked, ready, tmp_path / "c")
    long = changed(GREEDY, sampling=Sampling(60))
    assert "new tokens exceed the model's context of 64" in refusing(table(long), ready, tmp_path / "d")
    other = rl_kit.other_tokenizer(tmp_path)
    words = table(changed(GREEDY, data=rl_kit.prompts(rl_kit.home(), tokenizer=other)))
    assert "the model sft was trained with another tokenizer" in refusing(words, ready, tmp_path / "e")
    with pytest.raises(UserError, match="fine is compared with 'nobody', which is no entry"):
        table(GREEDY, Entry("fine", ("sft",), over="nobody"))


def test_means_and_differences_equal_numpys():
    rng = np.random.default_rng(0)
    one, three, base = rng.normal(size=(1, 40)), rng.normal(size=(3, 40)), rng.normal(size=(2, 40))
    assert mean(one[0]) == mean(one)
    assert mean(one).value == pytest.approx(one.mean()) and mean(one).stderr == pytest.approx(one.std(ddof=1) / 40**0.5)
    want = (three.mean(axis=0).var(ddof=1) / 40 + three.mean(axis=1).var(ddof=1) / 3) ** 0.5
    assert mean(three).stderr == pytest.approx(want) and mean(three).value == pytest.approx(three.mean())
    gap = difference(three, base)
    apart = three.mean(axis=0) - base.mean(axis=0)
    want = apart.var(ddof=1) / 40 + three.mean(axis=1).var(ddof=1) / 3 + base.mean(axis=1).var(ddof=1) / 2
    assert gap.value == pytest.approx(apart.mean()) and gap.stderr == pytest.approx(want**0.5)
    assert difference(one, one) == (0.0, 0.0)
    assert mean(np.array([[0.5]])) == (0.5, 0.0)
    low, high = mean(one).interval
    assert high - low == pytest.approx(2 * 1.959964 * mean(one).stderr)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """95 % of intervals over 200 prompts hold the mean of the distribution that they were drawn from."""
    rng = np.random.default_rng(1)
    covered = [low <= 0.3 <= high for low, high in
               (mean((rng.random(200) < 0.3).astype(float)).interval for _ in range(2000))]  # fmt: skip
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
