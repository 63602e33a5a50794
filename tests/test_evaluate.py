"""The table says what the verdicts say, divergences are those of the models, and a stopped evaluation goes on."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import rl_kit

import models
from easylm_jax.config import Entry, Evaluate, Published, Recipe, Sampling, Source, Task
from easylm_jax.data.build import first_records, stage_cache
from easylm_jax.data.tokenizer import restrict_vocab
from easylm_jax.decode import rollout
from easylm_jax.evaluate import stage as evaluation
from easylm_jax.evaluate.statistics import difference, mean
from easylm_jax.experiment import Experiment
from easylm_jax.report.read import collect
from easylm_jax.report.tables import ablation, as_text
from easylm_jax.rewards.scorer import RewardScorer
from models.errors import UserError
from models.reading import read_lines

PROMPTS = dataclasses.replace(rl_kit.prompts(rl_kit.home()), sequence_length=40)  # room for all prompts
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
    with rl_kit.devices(1):
        yield


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    it = rl_kit.experiment(tmp_path_factory.mktemp("evaluate"), TABLE)
    it.run(TABLE)
    return it


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def lines_of(path):
    return list(read_lines(path))


def of_models(ready):
    return {name: read(ready.folder("table") / "models" / f"{name}.json") for name in ("sft", "pretrain")}


def judged_models(monkeypatch):
    """A list that takes the name of every model as it is evaluated."""
    names, original = [], evaluation._evaluate_model
    monkeypatch.setattr(
        evaluation, "_evaluate_model", lambda stage, name, *rest: names.append(name) or original(stage, name, *rest)
    )
    return names


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
        {"name": "greedy", "prompts": 10, "metric": rl_kit.VERIFIER, "samples": 1, "limit": 10, "read": 10,
         "left_out": {}, "longest": 40},
        {"name": "sampled", "prompts": 7, "metric": "rl_kit:of_prompt", "samples": 3, "limit": 7, "read": 7,
         "left_out": {}, "longest": 40},
    ]  # fmt: skip


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


def test_every_response_is_kept_with_its_label_and_verdict(ready):
    files, kept = of_models(ready), lines_of(ready.folder("table") / "samples.jsonl")
    runs = [("base", "pretrain", 0), ("both", "sft", 0), ("both", "pretrain", 1), ("fine", "sft", 0)]
    assert list(dict.fromkeys((line["method"], line["stage"], line["run"]) for line in kept)) == runs
    assert len(kept) == len(runs) * (10 + 7 * 3)
    responses = {name: [line["response"] for line in kept if line["stage"] == name] for name in ("sft", "pretrain")}
    assert responses["sft"] != responses["pretrain"]
    for name, file in files.items():
        mine = [line for line in kept if (line["stage"], line["run"]) == (name, 0)][: 10 + 7 * 3]
        greedy, sampled = ([line for line in mine if line["task"] == task] for task in ("greedy", "sampled"))
        assert [line["score"] for line in greedy] == file["tasks"]["greedy"]["scores"]
        assert [(line["number"], line["sample"]) for line in sampled] == [(n, s) for n in range(7) for s in range(3)]
        means = np.array([line["score"] for line in sampled]).reshape(7, 3).mean(axis=1)
        np.testing.assert_allclose(means, file["tasks"]["sampled"]["scores"])
        for line in mine:  # the record that the prompt came from, its label, and the verdict on this response
            given = rl_kit.prompt(line["record"])
            assert (line["prompt"], line["label"]) == (given["messages"][-1]["content"], given["ground_truth"])
            of = rl_kit.share_of_e if line["task"] == "greedy" else rl_kit.of_prompt
            assert line["score"] == of(line["response"], {"_messages": given["messages"]})
            assert 1 <= line["length"] <= rl_kit.NEW and line["ended"] in (True, False)


def test_a_page_shows_one_run_and_one_response_to_each_of_the_first_prompts(ready):
    (stage,) = [stage for stage in collect(ready.root).stages if stage.name == "table"]
    shown = [(line["method"], line["task"], line["number"], line["sample"]) for line in stage.answers]
    tasks = (("greedy", 8), ("sampled", 7))
    assert shown == [(m, task, n, 0) for m in ("base", "both", "fine") for task, count in tasks for n in range(count)]
    # What an older version wrote has none of these numbers, and all of it is shown.
    (ready.root / "old").mkdir()
    for name in ("config.json", "table.json"):
        shutil.copy(ready.folder("table") / name, ready.root / "old" / name)
    old = {"method": "base", "stage": "pretrain", "task": "greedy", "prompt": "one", "response": "two", "score": 0.5}
    (ready.root / "old" / "samples.jsonl").write_text(9 * (json.dumps(old) + "\n"))
    table = read(ready.root / "old" / "table.json")
    table["tasks"] = [{"name": "greedy", "prompts": 10, "metric": rl_kit.VERIFIER, "samples": 1}]
    (ready.root / "old" / "table.json").write_text(json.dumps(table))
    (ready.root / "old" / "done.json").write_text(json.dumps({"kind": "Evaluate", "family": "evaluate"}))
    try:
        (found,) = [stage for stage in collect(ready.root).stages if stage.folder.name == "old"]
    finally:
        shutil.rmtree(ready.root / "old")
    assert list(found.answers) == 9 * [old]
    assert "leaves out" not in as_text(ablation(found.table)) and "greedy, 10 held-out" in as_text(
        ablation(found.table)
    )


def test_prompts_that_are_left_out_are_counted_and_told(ready, tmp_path, capsys):
    """Of the first twelve prompts those that are too long are missing, not the first twelve of those that fit."""
    lengths = stage_cache(ready, PROMPTS).columns["lengths"]
    bound = int(np.sort(lengths[:12])[5])
    fit = [n for n in range(12) if lengths[n] <= bound]
    assert 0 < len(fit) < 12 < len(lengths) == 32
    task = dataclasses.replace(GREEDY, data=dataclasses.replace(PROMPTS, sequence_length=bound), limit=12)
    stage = Evaluate("short", title="t", tasks=(task,), entries=(Entry("fine", ("sft",)),))
    it = rl_kit.experiment(tmp_path / "runs", stage)
    it.run(stage)
    table = read(it.root / "table.json")
    (facts,) = table["tasks"]
    missing = 12 - len(fit)
    assert facts["left_out"] == {"too long": missing} and facts["longest"] == bound
    assert (facts["read"], facts["prompts"], facts["limit"]) == (12, len(fit), 12)
    assert [line["record"] for line in lines_of(it.folder("short") / "samples.jsonl")] == fit
    told = f"task greedy: {missing} of 12 prompts are left out: {missing} too long (above {bound} tokens)"
    assert told in capsys.readouterr().err.splitlines()
    note = f"greedy leaves out {missing} of the first 12 prompts: {missing} too long (above {bound} tokens)."
    assert note in as_text(ablation(table))


def test_a_limit_is_over_all_sources_in_reading_order(tmp_path):
    for name, count in (("a", 3), ("b", 5), ("c", 4)):
        rl_kit.write(tmp_path / f"{name}.jsonl", [rl_kit.prompt(i) for i in range(count)])
    spec = dataclasses.replace(
        rl_kit.prompts(rl_kit.home()), sources=tuple(Source(f"{tmp_path}/{name}.jsonl") for name in "abc")
    )

    def limits(limit):
        return [source.limit for source in first_records(spec, limit).sources]

    assert [limits(n) for n in (2, 3, 6, 9, 100)] == [[2], [3], [6, 3], [9, 6, 1], [100, 97, 92]]


def test_an_evaluation_that_an_older_version_left_half_done_asks_its_models_again(ready, tmp_path, monkeypatch):
    """It kept no responses, and may have taken its limit from other prompts."""
    it = Experiment(ready.recipe, shutil.copytree(ready.out, tmp_path / "runs"))
    (it.folder("table") / "models" / "sft.jsonl").unlink()
    (it.folder("table") / "done.json").unlink()
    judged = judged_models(monkeypatch)
    it.run(TABLE)
    assert judged == ["sft"]
    assert (it.folder("table") / "samples.jsonl").read_bytes() == (ready.folder("table") / "samples.jsonl").read_bytes()


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
    assert (
        sorted(path.name for path in folder.iterdir()) == ["pretrain.json", "pretrain.jsonl"]
        and not (it.root / "table.json").exists()
    )
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
    judged = judged_models(monkeypatch)
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
    kept = lines_of(it.folder("liked") / "samples.jsonl")
    assert [line["score"] for line in kept] == scores  # every response, with the one that counts marked
    assert [line["sample"] for line in kept if line["selected"]] == best.tolist()
    for line in kept:
        assert line["response"] == rollout.text_of(rollouts, 3 * line["number"] + line["sample"], tokenizer)


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
    assert "entries reward is a reward model (scalar head), but a language model is needed" in refusing(
        liked, ready, tmp_path / "c"
    )
    long = changed(GREEDY, sampling=Sampling(60))
    assert "new tokens exceed the model's context of 64" in refusing(table(long), ready, tmp_path / "d")
    other = rl_kit.other_tokenizer(tmp_path)
    words = table(changed(GREEDY, data=rl_kit.prompts(rl_kit.home(), tokenizer=other)))
    assert "entries sft was trained with another tokenizer" in refusing(words, ready, tmp_path / "e")
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
