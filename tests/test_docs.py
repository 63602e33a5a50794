"""README and docs: every command, option, recipe, field and file that they name exists, and their examples run."""

import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import rl_kit

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli.main import COMMANDS
from easylm_jax.cli.parser import Parser
from easylm_jax.config.catalog import installed_recipes
from easylm_jax.config.data import Source
from easylm_jax.config.load import load_recipe
from easylm_jax.data import survey
from easylm_jax.plan import by_name, topology

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SUMMARY = re.compile(r"\[-|\.\.\.|…|\w\|\w")  # a line that shows the syntax and not a command
SHELL = {"|", ">", ";", "&&", "done"}


def code_lines(page):
    """Lines of code of a page, fenced or indented, with continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def commands():
    """(page, words) of every `easylm` command, up to a pipe or a comment."""
    for page in PAGES:
        for line in code_lines(page):
            found = re.match(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?easylm (?!COMMAND)(.*)", line)
            if not found:
                continue
            text = re.split(r"\s{2,}", found[1])[0]  # what follows explains the command
            if SUMMARY.search(text):
                yield page.name, text.split(), True
                continue
            words = shlex.split(text, comments=True)
            end = next((at for at, word in enumerate(words) if word.rstrip(";") != word or word in SHELL), len(words))
            yield page.name, words[:end], False


def parser_of(name):
    parser = Parser(prog=f"easylm {name}")
    importlib.import_module(f"easylm_jax.cli.{name}").add_arguments(parser)
    return parser


def test_there_are_commands_of_every_kind():
    found = list(commands())
    assert len(found) > 80 and {words[0] for _, words, _ in found} >= set(COMMANDS)
    assert sum(summary for _, _, summary in found) < 15


def test_every_command_and_option_exists(monkeypatch):
    for kind in (kinds.InputFile, kinds.InputFolder):  # what a page names need not be here
        monkeypatch.setattr(kind, "checked", kinds.Kind.checked)
    for page, words, summary in commands():
        assert words[0] in COMMANDS, (page, words)
        parser = parser_of(words[0])
        if summary:
            known = set(parser._options(words)) | {"--help"}
            options = {option for word in words for option in re.findall(r"--[a-z-]+", word)}
            assert options <= known, (page, words)
        elif "--help" not in words:
            parser.parse(words[1:], intermixed=COMMANDS[words[0]].intermixed)


def test_recipes_that_are_run_exist_and_have_the_fields_that_are_changed(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    checked = 0
    for page, words, summary in commands():
        if words[0] not in ("run", "plan") or summary or len(words) < 2:
            continue
        name, overrides = words[1], [word for word in words[2:] if "=" in word and not word.startswith("-")]
        if Path(name).name == name and name not in installed_recipes():  # one's own: FILE, my_sft.py
            assert name in ("FILE", "RECIPE") or re.fullmatch(r"(my|own)_\w+\.py", name), (page, words)
            continue
        if "--sweep" in words:
            overrides = [word for word in overrides if not words[words.index(word) - 1].startswith("--")]
        if by_name.names_model(name):
            recipe = by_name.recipe_of("hf:meta-llama/Llama-3.1-8B", overrides, topology.parse("v5p-64"))
        else:
            recipe = load_recipe(str(REPOSITORY / name) if name.startswith("recipes/") else name, overrides)
        for option in ("--only", "--stage"):
            if option in words:
                assert recipe.stage(words[words.index(option) + 1])
        checked += 1
    assert checked > 25


def test_targets_of_make_and_scripts_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for page in PAGES:
        for line in code_lines(page):
            if found := re.match(r"make ([a-z-]+)", line):
                assert re.search(rf"^{found[1]}:", makefile, re.MULTILINE), (page.name, line)
            if found := re.match(r"(?:\.venv/bin/)?python (\S+\.py)", line):
                assert (REPOSITORY / found[1]).is_file(), (page.name, line)


def test_links_lead_to_files_and_headings():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith(("http", "mailto:")):
                continue
            name, _, heading = target.partition("#")
            file = page if not name else page.parent / name
            assert file.exists(), (page.name, target)
            if heading:
                titles = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
                assert heading in slugs, (page.name, target)


def test_every_page_is_listed_in_the_index():
    index = (REPOSITORY / "docs/index.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.name == "index.md" or f"({page.name})" in index, page.name


def blocks(page, kind):
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{kind}([^\n]*)\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("kind", ("chat", "preference", "prompts", "text"))
def test_sample_lines_of_the_data_formats_are_read(kind, tmp_path):
    found = blocks("data_formats.md", kind)
    assert found
    for fields, lines in found:
        path = tmp_path / "rows.jsonl"
        path.write_text(lines, encoding="utf-8")
        named = dict(pair.split("=") for pair in fields.strip().split(",")) if fields.strip() else None
        if kind == "text":
            assert all(json.loads(line)["text"] for line in lines.splitlines())
        else:
            read = survey.survey(Source(str(path), fields=named), kind, "tulu", None)
            assert read.rows == len(lines.splitlines()) and read.longest > 0


def test_the_data_of_the_first_hour_is_written_and_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((_, code),) = blocks("getting_started.md", "python")
    exec(compile(code, "getting_started.md", "exec"), {})
    for name, kind in {"chats": "chat", "pairs": "preference", "prompts": "prompts"}.items():
        assert survey.survey(Source(f"{name}.jsonl"), kind, "tulu", None).rows == 100


def test_the_examples_of_the_library_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    shutil.copytree(rl_kit.made().out / "rl", tmp_path / "runs/quickstart")
    names: dict = {}
    examples = blocks("library.md", "python")
    assert len(examples) == 4
    for _, code in examples:
        exec(compile(code, "library.md", "exec"), names)
    assert names["correct"] is True and names["advantages"].shape == (1, 4) and len(names["losses"]) > 1
    assert (tmp_path / "exported/config.json").is_file()
    assert "sft done, with other settings" in capsys.readouterr().out
