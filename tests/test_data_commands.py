"""`easylm data build | inspect | stats | tokenizer`: what a person types and what comes back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from data_kit import conversations, corpus, sentencepiece, write_jsonl

from easylm_jax.cli.main import main
from easylm_jax.data.build import stage_cache

NEEDED = ["--tokenizer", "sp:{0}/tokenizer.model", "--length", "8", "--out", "{0}/x"]
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    sentencepiece(folder)
    write_jsonl(folder / "chats.jsonl", [{"messages": turns} for turns in conversations(8)])
    write_jsonl(folder / "texts.jsonl", [{"text": text} for text in corpus(20)])
    return folder


def run(*words, status=0):
    assert main([str(word) for word in words]) == status


def build_chat(folder, *more):
    tokenizer = f"sp:{folder / 'tokenizer.model'}"
    chat = ["--kind", "chat", "--template", "tulu", "--length", 256]
    run("data", "build", folder / "chats.jsonl", "--tokenizer", tokenizer, *chat, "--out", folder / "chat", *more)


def test_build_prints_what_the_cache_holds_and_writes_json(folder, capsys):
    build_chat(folder, "--json", folder / "build.json")
    printed = capsys.readouterr().out
    facts = json.loads((folder / "build.json").read_text())
    assert facts["folder"] in printed and f"{facts['tokens']:,}" in printed
    assert "8 of 8 records" in printed
    assert facts["spec"]["packing"] == "best_fit"
    assert Path(facts["folder"]).parent == folder / "chat"


def test_inspect_marks_the_trained_tokens_and_nothing_else(folder, capsys):
    build_chat(folder)
    capsys.readouterr()
    run("data", "inspect", folder / "chat", "--rows", 1000, "--ids", "--json", folder / "rows.json")
    printed = capsys.readouterr().out
    for turns in conversations(8):
        expected = ""
        for i, turn in enumerate(turns):
            content = f"⟦{turn['content']}</s>⟧" if turn["role"] == "assistant" else turn["content"]
            last = turn["role"] == "assistant" and i == len(turns) - 1
            expected += f"<|{turn['role']}|>\n{content}" + ("" if last else "\n")
        assert expected in printed
    rows = json.loads((folder / "rows.json").read_text())["rows"]
    documents = [document for row in rows for document in row["documents"]]
    assert sorted(document["record"] for document in documents) == list(range(8))
    for document in documents:
        assert " ".join(map(str, document["ids"])) in printed and len(document["ids"]) == document["tokens"]


def test_build_of_text_inspects_with_its_document_bounds(folder, capsys):
    words = ["--tokenizer", f"sp:{folder / 'tokenizer.model'}", "--length", 64, "--out", folder / "text"]
    run("data", "build", folder / "texts.jsonl", *words)
    run("data", "inspect", folder / "text", "--rows", 1)
    printed = capsys.readouterr().out
    assert "record 0, tokens" in printed and "</s>⟧" in printed


def test_build_reads_a_specification_file(folder, capsys):
    sources = [{"path": str(folder / "texts.jsonl"), "weight": 3}, {"path": str(folder / "texts.jsonl"), "weight": 1}]
    spec = {"sources": sources, "tokenizer": f"sp:{folder / 'tokenizer.model'}", "sequence_length": 32}
    (folder / "spec.json").write_text(json.dumps(spec))
    run("data", "build", "--spec", folder / "spec.json", "--out", folder / "mixed")
    printed = capsys.readouterr().out
    assert "rate 0.75" in printed and "rate 0.25" in printed
    same = ["--weights", "3,1", "--tokenizer", spec["tokenizer"], "--length", 32, "--out", folder / "mixed"]
    run("data", "build", folder / "texts.jsonl", folder / "texts.jsonl", *same)
    run("data", "stats", folder / "mixed")  # still a single cache: both ways name the same thing


def test_stats_verifies_the_files(folder, capsys):
    build_chat(folder)
    run("data", "stats", folder / "chat", "--verify", "--json", folder / "stats.json")
    assert "every file agrees with its checksum" in capsys.readouterr().out
    assert json.loads((folder / "stats.json").read_text())["rows"] > 0


def test_tokenizer_trains_on_texts_and_conversations(folder, capsys):
    sources = [folder / "texts.jsonl", folder / "chats.jsonl"]
    run("data", "tokenizer", *sources, "--vocab", 330, "--symbols", "<|im_start|>,<|im_end|>", "--out", folder / "own")
    assert f"sp:{folder / 'own' / 'tokenizer.model'}: 330 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["build", "a", *NEEDED, "--weights", "1,2"], "2 weights for 1 sources"),
        (["build", "a", *NEEDED, "--weights", "x"], "'x' must be numbers"),
        (["build", "a", *NEEDED, "--fields", "user"], "must read role=column"),
        (["build", *NEEDED], "name at least one source"),
        (["build", "{0}/no.jsonl", *NEEDED], "no file at"),
        (["build", "--out", "x"], "build needs --tokenizer (or --spec)"),
        (
            ["build", "{0}/no.jsonl", "--tokenizer", "sp:{0}/tokenizer.model", "--length", "8", "--out", "{0}/x"],
            "no file",
        ),
        (
            ["build", "a", "--weights", "1,2", "--tokenizer", "t", "--length", "8", "--out", "x"],
            "2 weights for 1 sources",
        ),
        (
            ["build", "a", "--fields", "user", "--tokenizer", "t", "--length", "8", "--out", "x"],
            "must read role=column",
        ),
        (["build", "--spec", "{0}/no.json", "--out", "x"], "no.json' does not exist; give the path of a file"),
        (["build", "a", "--spec", __file__, "--out", "x"], "give sources or --spec, not both"),
        (["stats", "{0}"], "holds no manifest.json"),
        (["inspect", "{0}/nowhere"], "nowhere' does not exist; give the path of a folder"),
        (["inspect", "{0}"], "holds no manifest.json; build it with"),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(words, message, folder, capsys):
    run("data", *(word.format(folder) for word in words), status=2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_inspect_refuses_another_vocabulary(folder, capsys, tmp_path):
    build_chat(folder)
    capsys.readouterr()
    run("data", "inspect", folder / "chat", "--tokenizer", sentencepiece(tmp_path, vocab=430), status=2)
    assert "was made with tokenizer" in capsys.readouterr().err


def test_help_of_every_subcommand_imports_nothing_heavy():
    for words in (["--help"], ["build", "--help"], ["inspect", "--help"]):
        code = f"""
import sys
from easylm_jax.cli.main import main
status = main(["data", *{words!r}])
print("HEAVY", sorted({{"numpy", "jax", "tensorflow", "sentencepiece"}} & set(sys.modules)), status)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
        assert done.stdout.splitlines()[-1] == "HEAVY [] 0"
        assert "easylm data" in done.stdout


RECIPE = """
from easylm_jax.config import (
    SFT, DataSpec, DecoderConfig, OptimizerConfig, Pretrain, Recipe, Source, Tokenizer, Validation,
)

text = Source({texts!r}, skip=5)
shape = DecoderConfig("olmo2", layers=1, width=16, heads=2, ffn=32, vocab=512, context=32)
chats = DataSpec(
    (Source({chats!r}),), "stage:words", 32, kind="chat", template="tulu", packing="best_fit", overlong="truncate"
)
recipe = Recipe("kit", stages=[
    Tokenizer("words", sources=(text, Source({chats!r})), vocab_size=400),
    Pretrain("pretrain", model=shape, data=DataSpec((text,), "stage:words", 32), batch=2, steps=1,
             optimizer=OptimizerConfig("1e-3 constant"),
             validation=Validation(DataSpec((Source({texts!r}, limit=5),), "stage:words", 32))),
    SFT("sft", init="pretrain", data=chats, batch=2, steps=1, optimizer=OptimizerConfig("1e-3 constant")),
])
"""


def test_build_of_a_recipe_makes_the_caches_that_its_stages_will_read(folder, capsys):
    from easylm_jax.config.load import load_recipe
    from easylm_jax.experiment import Experiment

    recipe = folder / "kit_recipe.py"
    recipe.write_text(RECIPE.format(texts=str(folder / "texts.jsonl"), chats=str(folder / "chats.jsonl")))
    run("data", "build", recipe, "--out", folder / "runs", "--json", folder / "recipe.json")
    made = json.loads((folder / "recipe.json").read_text())
    assert list(made) == ["pretrain", "pretrain validation", "sft"]
    experiment = Experiment(load_recipe(str(recipe)), folder / "runs")
    for name in ("pretrain", "sft"):
        cache = stage_cache(experiment, experiment.recipe.stage(name).data)
        assert str(cache.folder) == made[name]["folder"]
