"""docs/contributing.md: every worked example runs as it stands there, and costs the files and lines that it says."""

import difflib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_imports import LAYERS

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "contributing.md").read_text(encoding="utf-8")
COPIED = ("easylm_jax", "models", "recipes")
EXAMPLES = (
    "verifier", "family", "family_with_new_mathematics", "objective", "benchmark", "stage_kind", "recipe", "optimiser",
)  # fmt: skip
HAS_OPTIMIZERS = (REPOSITORY / "easylm_jax" / "train" / "algorithms.py").is_file()


def section(name):
    """The text under the heading of an example."""
    title = re.search(rf"^### An? {name.replace('_', ' ')}$", PAGE, re.MULTILINE)
    assert title, f"docs/contributing.md has no section on a {name}"
    return re.split(r"^##", PAGE[title.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def apply(name, folder):
    """Writes an example's files below `folder` and makes its changes; returns (new files, lines changed by file)."""
    text, new, changed = section(name), [], {}
    for code in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        path, _, body = code.partition("\n")
        file = folder / path.removeprefix("# ")
        assert path.startswith("# ") and not file.exists(), f"{path} is no new file"
        file.write_text(body, encoding="utf-8")
        new.append(path.removeprefix("# "))
    for diff in re.findall(r"^```diff\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        header, *lines = diff.splitlines()
        file = folder / header.removeprefix("+++ ")
        before = file.read_text(encoding="utf-8")
        old, fresh = ("".join(f"{line[1:]}\n" for line in lines if line[:1] in kept) for kept in (" -", " +"))
        assert f"\n{before}".count(f"\n{old}") == 1, f"{header} does not have these lines once:\n{old}"
        after = f"\n{before}".replace(f"\n{old}", f"\n{fresh}")[1:]
        file.write_text(after, encoding="utf-8")
        changes = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
        body = [line for line in list(changes)[2:] if not line.startswith("@@")]
        changed[header.removeprefix("+++ ")] = max(sum(line[0] == sign for line in body) for sign in "+-")
    return new, changed


def told(name):
    """What the page's table says of an example: (number of new files, lines changed by file)."""
    row = re.search(
        rf"^\| \[an? {name.replace('_', ' ')}\].*\| (\d+) \| (?:none|(\d+) in `(.*?)`) \|$", PAGE, re.MULTILINE
    )
    assert row, f"the table of docs/contributing.md has no row on a {name}"
    return int(row[1]), {row[3]: int(row[2])} if row[2] else {}


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    """By example: the copy of the project with its change, its new files, and the lines changed in others."""
    made = {}
    for name in EXAMPLES:
        if name == "optimiser" and not HAS_OPTIMIZERS:
            continue
        folder = tmp_path_factory.mktemp(name)
        for package in COPIED:
            shutil.copytree(REPOSITORY / package, folder / package)  # byte code too, which saves compiling it
        (folder / "docs").mkdir()
        shutil.copy(REPOSITORY / "docs" / "recipes.md", folder / "docs")
        made[name] = (folder, *apply(name, folder))
    return made


@pytest.fixture(scope="module")
def results(costs):
    """What each example found when it ran, or its traceback."""
    script = Path(__file__).with_name("contributing_examples.py")
    arguments = [f"{name}={folder}" for name, (folder, _, _) in costs.items()]
    run = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=600)
    lines = [line for line in run.stdout.splitlines() if line.startswith('{"example"')]
    found = {result["example"]: result for result in map(json.loads, lines)}
    assert found.keys() == costs.keys(), run.stderr[-3000:]
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_of_the_page_runs(name, request):
    if name == "optimiser" and not HAS_OPTIMIZERS:
        pytest.skip("easylm_jax/train/algorithms.py with its table OPTIMIZERS is not there yet")
    result = request.getfixturevalue("results")[name]
    assert "error" not in result, result["error"]
    print(f"{name}: {result['found']}, {result['cpu_seconds']:.1f} CPU-seconds")


def test_each_example_costs_the_files_and_lines_that_the_page_says(costs):
    print(f"\n{'change':<30}{'new files':<52}lines in other files")
    for name, (_, new, changed) in costs.items():
        print(f"{name:<30}{', '.join(new) or '-':<52}{', '.join(f'{n} in {file}' for file, n in changed.items())}")
        assert (len(new), changed) == told(name)
    ordinary = set(costs) - {"family_with_new_mathematics", "optimiser"}
    assert all(len(costs[name][1]) == 1 and sum(costs[name][2].values()) <= 1 for name in ordinary)


def test_the_page_shows_the_layers_that_the_imports_are_held_to():
    shown = re.search(r"^```layers\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1]
    assert tuple(tuple(line.split()) for line in shown.splitlines()) == LAYERS
