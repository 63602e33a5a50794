"""`easylm new`: a recipe that runs as it is on one's own rows, with sizes that suit the model and the rows."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import data_kit
import numpy as np
import pytest
import rl_kit

from easylm_jax.cli.main import main
from easylm_jax.config.load import load_recipe
from easylm_jax.config.starters import KINDS, Start, text_of
from easylm_jax.experiment import Experiment
from easylm_jax.runtime.monitor.metrics import read_metrics
from models.errors import UserError

QUESTIONS = [
    {"question": f"{word} {i}", "answer": rl_kit.WORDS[i % 7]} for i in range(3) for word in ("one", "two", "three")
]
CHATS = [rl_kit.chat(i) for i in range(10)]
PAIRS = [rl_kit.pair(i) for i in range(10)]


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model():
    return str(rl_kit.made().out / "rl/sft")


def rows(name, records):
    rl_kit.write(Path(name), records)
    return name


def new(*arguments):
    """Writes a recipe to own_<kind>.py and returns it, loaded."""
    file = f"own_{arguments[0]}.py"
    assert main(["new", *arguments, "--out", file]) == 0
    return load_recipe(file)


def refused(capsys, *arguments):
    status = main(["new", *arguments])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and err.count("\n") == 1, err
    return err


RUNS = {
    "sft": ("sft", CHATS), "dpo": ("dpo", PAIRS), "reward": ("reward", PAIRS), "ppo": ("ppo", PAIRS),
    "ppo with a function": ("ppo", QUESTIONS), "grpo": ("grpo", QUESTIONS), "eval": ("eval", QUESTIONS),
}  # fmt: skip

SLOW = ("ppo with a function", "grpo")  # their parts run in "ppo" and in tests/test_rl_learning.py


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RUNS]
)
def test_a_new_recipe_runs_as_it_is(name, model, tmp_path):
    """As it is but for the number of steps."""
    kind, records = RUNS[name]
    assert new(kind, "--model", model, "--data", rows("rows.jsonl", records)).name == f"own-{kind}"
    shorter = [f"{stage.name}.steps=3" for stage in load_recipe(f"own_{kind}.py").stages if stage.trains]
    recipe = load_recipe(f"own_{kind}.py", shorter)
    experiment = Experiment(recipe, tmp_path / "runs")
    with rl_kit.devices(1):
        for stage in experiment.in_order():
            experiment.run(stage)
    for stage in recipe.stages:
        folder = experiment.folder(stage.name)
        assert json.loads((folder / "done.json").read_text())["stage"] == stage.name
        if kind != "eval":
            lines = [line for line in read_metrics(folder) if line["step"]]  # RL evaluates before its first update
            assert len(lines) == 3 and all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    if kind == "eval":
        (row,) = json.loads((tmp_path / "runs/own-eval/table.json").read_text())["rows"]
        assert 0 <= row["score"] <= 1


def test_every_kind_is_run_here():
    assert {kind for kind, _ in RUNS.values()} == set(KINDS)


def test_the_recipe_is_printed_without_a_file_and_commands_in_it_exist(model, capsys):
    rows("rows.jsonl", CHATS)
    assert main(["new", "sft", "--model", model, "--data", "rows.jsonl"]) == 0
    printed = capsys.readouterr().out
    recipe = new("sft", "--model", model, "--data", "rows.jsonl")
    written = Path("own_sft.py").read_text()
    assert (
        written.partition("from easylm_jax")[2].replace("own-sft", "my-sft") == printed.partition("from easylm_jax")[2]
    )
    assert recipe.stage("sft").init == f"run:{model}" and recipe.stage("sft").data.template == "tulu"
    capsys.readouterr()
    for name in re.findall(r"^    easylm (\w+)", printed, re.MULTILINE):
        assert main([name, "--help"]) == 0


def start(**changes):
    given = {
        "kind": "sft", "name": "own", "file": "own.py", "model": "hf:a/b", "tokenizer": "hf:a/b", "template": "tulu",
        "data": "rows.jsonl", "rows": 100, "longest": 61,
    }  # fmt: skip
    return Start(**{**given, **changes})


@pytest.mark.parametrize("kind, pairs, small, count", list(itertools.product(
    sorted(KINDS), (False, True), (False, True), (1, 12, 100, 100_000))
))  # fmt: skip
def test_every_text_is_a_recipe_with_eight_steps_in_an_epoch_where_there_are_rows(kind, pairs, small, count, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(text_of(start(kind=kind, pairs=pairs, small=small, rows=count, label="answer" if small else None)))
    recipe = load_recipe(str(path))
    assert len(recipe.stages) == (2 if kind == "ppo" and pairs else 1)
    for stage in recipe.stages:
        if stage.trains:
            held = stage.validation.data.sources[0].limit if stage.validation else 0
            assert stage.batch * 8 <= max(count - held, 8)
            assert (stage.compute.dtype == "float32") == small


def test_printed_recipes_are_formatted_as_the_project_is(tmp_path):
    for kind in KINDS:
        for pairs in (False, True):
            (tmp_path / f"{kind}_{pairs}.py").write_text(text_of(start(kind=kind, pairs=pairs)))
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["format", "--check"], ["check", "--select", "E,F,I"]):
        done = subprocess.run(
            [*ruff, *command, "--isolated", "--line-length", "120", str(tmp_path)], capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_sizes_follow_the_rows_and_the_context():
    assert [start(rows=n).batch(32) for n in (1, 12, 100, 1000, 10**6)] == [1, 1, 8, 32, 32]
    assert [start(rows=n).held_out for n in (5, 8, 100, 10**6)] == [0, 1, 10, 200]
    assert (start(longest=61).length, start(longest=61, context=48).length) == (64, 48)
    assert start(kind="grpo", longest=61, context=128, small=True).response == 64
    assert start(kind="grpo", longest=100, context=128, small=True).response == 16
    with pytest.raises(UserError, match="no room for a response in the model's context of 64"):
        text_of(start(kind="grpo", longest=61, context=64))


def test_columns_of_questions_and_answers_are_found_or_named(model, capsys):
    data = rows("questions.jsonl", QUESTIONS)
    stage = new("sft", "--model", model, "--data", data).stage("sft")
    assert stage.data.sources[0].columns == (("user", "question"), ("assistant", "answer"))
    capsys.readouterr()
    odd = rows("odd.jsonl", [{"q": "one", "a": "two"}])
    assert "no conversation among the columns 'q', 'a'; name them with --fields" in refused(
        capsys, "sft", "--model", model, "--data", odd
    )
    assert main(["new", "sft", "--model", model, "--data", odd, "--fields", "user=q,assistant=a"]) == 0
    assert 'fields={"user": "q", "assistant": "a"}' in capsys.readouterr().out
    assert "must read role=column" in refused(capsys, "sft", "--model", model, "--data", odd, "--fields", "q")


def test_what_new_cannot_use_is_told_in_one_line(model, capsys, tmp_path):
    data = rows("chats.jsonl", CHATS)
    taken = tmp_path / "taken.py"
    taken.write_text("")
    for arguments, says in {
        ("sft", "--model", model, "--data", "none.jsonl"): "none.jsonl",
        ("sft", "--model", "none", "--data", data): "none",
        ("sft", "--model", "hf:/none", "--data", data): "no model hf:/none",
        ("sft", "--model", model, "--data", "hf:a/b"): "give a file",
        ("dpo", "--model", model, "--data", data): "chosen",
        ("sft", "--model", model, "--data", data, "--template", "nope"): "nope",
        ("sft", "--model", model, "--data", data, "--out", str(taken)): "exists; give another file with --out",
        ("sft", "--model", model, "--data", data, "--out", "my recipe.txt"): "give a Python file with a name of",
        ("sft", "--model", model, "--data", data, "--out", "none/recipe.py"): "cannot write none/recipe.py",
        ("stf", "--model", model, "--data", data): "no KIND 'stf'; did you mean 'sft'?",
    }.items():
        assert says in refused(capsys, *arguments)
    assert taken.read_text() == ""


def test_a_hugging_face_model_gives_its_template_and_context(tmp_path, capsys):
    folder = tmp_path / "Qwen2.5-tiny"
    data_kit.hf_tokenizer(folder)
    from easylm_jax.config import DecoderConfig
    from models.families.qwen2 import PRESETS, to_hf

    config = next(iter(PRESETS.values())).replace(
        layers=1, width=32, heads=4, kv_heads=2, head_dim=8, ffn=64, context=40
    )
    assert isinstance(config, DecoderConfig)
    (folder / "config.json").write_text(json.dumps(to_hf(config)))
    stage = new("sft", "--model", f"hf:{folder}", "--data", rows("rows.jsonl", CHATS)).stage("sft")
    assert (stage.data.template, stage.init, stage.data.tokenizer) == ("qwen", f"hf:{folder}", f"hf:{folder}")
    assert stage.data.sequence_length <= 40
