"""The small recipes of RLVR run from data to table, cut short; the micro-anneals run on a model of two layers."""

import json

import jax
import pytest
import rl_kit
from data_kit import corpus, sentencepiece, write_jsonl

from easylm_jax.config import DataSpec, DecoderConfig, OptimizerConfig, Pretrain, Recipe, Source
from easylm_jax.config.load import load_recipe
from easylm_jax.experiment import Experiment
from recipes.__main__ import FOLDER

SHORT = {
    "ifbench/small.py": ["pretrain.steps=30", "sft.steps=3", *(f"grpo-{seed}.steps=2" for seed in (0, 1, 2))],
    "tulu3/small.py": [
        "pretrain.steps=30", "sft.steps=3", "answers.limit=300", "answers.batch=100", "rm.steps=2",
        "rm.data.sources.0.skip=4", "rm.validation.data.sources.0.limit=4",
        *(f"{method}-{seed}.steps=2" for method in ("ppo", "grpo") for seed in (0, 1)),
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_small_recipe_runs_from_data_to_table(name, tmp_path):
    recipe = load_recipe(str(FOLDER / name), SHORT[name])
    it = Experiment(recipe, tmp_path)
    with rl_kit.devices(1):
        for stage in it.in_order():
            it.run(stage)
    table = json.loads((it.root / "table.json").read_text(encoding="utf-8"))
    (stage,) = (stage for stage in recipe.stages if stage.name == "table")
    assert [row["method"] for row in table["rows"]] == [entry.method for entry in stage.entries]
    for row in table["rows"]:
        assert {task.name for task in stage.tasks} <= set(row["scores"])
        assert all(0 <= score["score"] <= 1 for score in row["scores"].values())


@pytest.mark.slow
def test_micro_anneals_of_ones_own_checkpoint_and_sources_end_in_the_table(tmp_path, monkeypatch):
    """The recipe of OLMo 2, given a checkpoint with its moments and two sources; sizes are overridden."""
    kinds = (("web", 1, 60), ("same", 1, 50), ("turned", -1, 50), ("held-out", 1, 20))
    texts = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", [{"text": t[::turn], "answer": t} for t in corpus(count)])
        for name, turn, count in kinds
    }
    tokenizer = sentencepiece(tmp_path / "tokenizer")
    config = DecoderConfig("olmo2", layers=2, width=16, heads=2, ffn=24, vocab=420, context=32, qk_norm=True)
    data = DataSpec((Source(str(texts["web"])),), tokenizer, 32)
    trained = Pretrain("stage1", model=config, data=data, batch=4, steps=3, optimizer=OptimizerConfig(1e-3))
    stage1 = Recipe("kit", (trained,), mesh="fsdp=1")
    monkeypatch.setenv("EASYLM_INIT", f"run:{tmp_path}/kit/stage1")
    monkeypatch.setenv("EASYLM_SOURCES", f"same={texts['same']},turned={texts['turned']}")
    size = [f"data.tokenizer={tokenizer}", "data.sequence_length=32"]
    names = ("web", "same", "turned")
    given = ["mesh=fsdp=1", "table.batch=4"]
    for name in names:
        web = [f"data.sources.0.path={texts['web']}", "data.sources.0.module=none"]
        given += [f"{name}.{field}" for field in (*size, *web, "steps=4", "batch=4", "compute.dtype=float32")]
    for number in (0, 1):
        local = (f"path={texts['held-out']}", "subset=none", "limit=none", "streaming=false")
        given += [f"table.sets.{number}.{field}" for field in (*size, *(f"data.sources.0.{field}" for field in local))]
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)
    Experiment(stage1, tmp_path).run(trained)
    it = Experiment(load_recipe(str(FOLDER / "olmo2/microanneals.py"), given), tmp_path)
    for stage in it.in_order():
        it.run(stage)
    rows = {row["method"]: row for row in json.loads((it.root / "table.json").read_text(encoding="utf-8"))["rows"]}
    assert tuple(rows) == names and "over" not in rows["web"]
    for name in names[1:]:
        assert rows[name]["over"]["difference"] == pytest.approx(rows[name]["score"] - rows["web"]["score"])
    done = json.loads((it.folder("turned") / "done.json").read_text(encoding="utf-8"))
    assert done["step"] == 4
