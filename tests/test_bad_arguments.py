"""Every argument of every command: a value that cannot be is one line that names it, and exit status 2."""

import random

import bad_arguments
import data_kit
import fake_run
import pytest
from bad_arguments import VALUES, Argument

from easylm_jax.cli import main
from easylm_jax.data import build_cache

ALL = list(bad_arguments.arguments())
CASES = [(argument, name) for argument in ALL for name in VALUES]
SAMPLE = 40
RECIPE = """\
from easylm_jax.config import *
recipe = Recipe("r", (MakeData("data", function="no.such:function"),))
"""


def test_the_page_of_bad_arguments_is_what_the_parsers_do(tmp_path):
    assert bad_arguments.PAGE.read_text() == bad_arguments.page(tmp_path), "run python tests/bad_arguments.py"
    assert len(ALL) > 70 and {"data build", "checkpoints diff", "run"} <= {argument.command for argument in ALL}


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> dict[str, tuple[list[str], list[str]]]:
    """By command: positional arguments and options with which it ends soon, since it has no model or little to do."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "empty").mkdir()
    (folder / "recipe.py").write_text(RECIPE)
    texts = str(data_kit.write_jsonl(folder / "texts.jsonl", [{"text": text} for text in data_kit.corpus(200)]))
    row = {"prompt": "A", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "response": "x"}
    responses = str(data_kit.write_jsonl(folder / "responses.jsonl", [row]))
    tokenizer = data_kit.sentencepiece(folder / "tokenizer")
    cache = str(build_cache(data_kit.text_spec(folder, tokenizer), folder / "cache").folder)
    fake_run.supervised(folder / "run", "sft", "SFT", 3, loss=1.0)
    empty, recipe = str(folder / "empty"), str(folder / "recipe.py")
    built = ["--tokenizer", tokenizer, "--length", "32", "--out", str(folder / "built")]
    return {
        "run": ([recipe], ["--list"]),
        "data build": ([texts], built),
        "data merge": ([texts], built),
        "data inspect": ([cache], []),
        "data stats": ([cache], []),
        "data decontaminate": ([texts], ["--against", texts, "--out", str(folder / "decontaminated"), "--workers=1"]),
        "data dedup": ([texts], ["--out", str(folder / "deduplicated"), "--workers=1"]),
        "data filter": ([texts], ["--out", str(folder / "filtered"), "--workers=1"]),
        "data mix": ([texts], ["--rates=1", "--out", str(folder / "mixed.jsonl")]),
        "data tokenizer": ([texts], ["--vocab", "300", "--out", str(folder / "trained")]),
        "checkpoints list": ([empty], []),
        "checkpoints verify": ([empty], []),
        "checkpoints average": ([empty], ["--out", str(folder / "soup")]),
        "checkpoints prune": ([empty], ["--dry-run"]),
        "checkpoints diff": ([empty, empty], []),
        "convert": ([empty, str(folder / "converted")], []),
        "generate": ([empty, "hello"], []),
        "serve": ([empty], ["--port=0"]),
        "eval": ([empty], ["--task", "gsm8k"]),
        "plan": ([recipe], []),
        "new": (["sft"], ["--model", empty, "--data", texts]),
        "report": ([str(folder / "run")], []),
        "check": ([responses], []),
        "moderate": ([responses], ["--model", empty]),
    }


def command_line(argument: Argument, text: str, lines) -> list[str]:
    """A command line in which one argument has this value and all others are right."""
    base = lines.get(argument.command)
    if base is None:  # a command that came later: what it requires is a file, which may be wrong for it
        required = [one for one in ALL if one.command == argument.command and one.action.required]
        base = ([VALUES["a file"]] * sum(not one.action.option_strings for one in required), [])
    positional, options = list(base[0]), list(base[1])
    if argument.action.option_strings:
        options.append(f"{argument.name}={text}")
    else:
        places = [one.dest for one in ALL if one.command == argument.command and not one.action.option_strings]
        place = places.index(argument.dest)
        positional[place : place + 1] = [text]
    return [*argument.command.split(), *positional, *options]


def ends_well_or_in_one_line(argument: Argument, name: str, lines, capsys, folder) -> str:
    """Runs one case; returns what is printed to standard error."""
    arguments = command_line(argument, VALUES[name](folder), lines)
    status = main.main(arguments)  # a traceback would be an exception here
    err = capsys.readouterr().err
    said = [line for line in err.splitlines() if line.startswith("easylm: error: ")]
    assert status in (0, 1) and not said or status == 2 and len(said) == 1, (arguments, status, err)
    return said[0] if said else ""


def test_every_value_that_the_parsers_refuse_is_one_line_that_names_its_argument(lines, tmp_path, capsys):
    refused = [(argument, name) for argument, name in CASES if argument.refuses(VALUES[name](tmp_path))]
    assert len(refused) > 500
    for argument, name in refused:
        said = ends_well_or_in_one_line(argument, name, lines, capsys, tmp_path)
        named = "UTF-8" if name == "not UTF-8" else argument.name
        assert named in said or (argument.action.choices and argument.dest in said), (argument.command, name, said)


ACCEPTED = [(argument, name) for argument, name in CASES if name != "not UTF-8"]


def run_accepted(cases, lines, tmp_path, capsys, monkeypatch) -> int:
    ran = 0
    for number, (argument, name) in enumerate(cases):
        folder = tmp_path / str(number)  # of its own, since commands write files that are called as the values are
        folder.mkdir()
        monkeypatch.chdir(folder)
        if not argument.refuses(VALUES[name](folder)):
            ends_well_or_in_one_line(argument, name, lines, capsys, folder)
            ran += 1
    return ran


def test_a_sample_of_what_the_parsers_accept_ends_well_or_in_one_line(lines, tmp_path, capsys, monkeypatch):
    accepted = [case for case in ACCEPTED if not case[0].refuses(VALUES[case[1]](tmp_path))]
    sample = random.Random(0).sample(accepted, SAMPLE)
    assert run_accepted(sample, lines, tmp_path, capsys, monkeypatch) == SAMPLE


@pytest.mark.slow
def test_everything_that_the_parsers_accept_ends_well_or_in_one_line(lines, tmp_path, capsys, monkeypatch):
    assert run_accepted(ACCEPTED, lines, tmp_path, capsys, monkeypatch) > 200
