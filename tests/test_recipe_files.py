"""Recipes as files and by name: what can go wrong with one is told in a line, and what lies beside it is found."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from easylm_jax.cli.main import COMMANDS, main
from easylm_jax.config import fields
from easylm_jax.config.catalog import find_recipe, installed_recipes
from easylm_jax.config.load import load_recipe
from easylm_jax.rewards.pool import Pool
from easylm_jax.rewards.verify import LOOKUP
from easylm_jax.runtime.functions import load_function
from models.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
QUICKSTART = str(REPOSITORY / "recipes/quickstart.py")
EMPTY = "from easylm_jax.config import Recipe\nrecipe = Recipe('empty', ())\n"


@pytest.fixture(autouse=True)
def own_search_path(monkeypatch, tmp_path):
    """Each test in a folder and with a `sys.path` of its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments):
    """The one line of a command that ended with status 2."""
    status = main(arguments)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and err.count("\n") == 1, err
    return err.removeprefix("easylm: error: ").rstrip("\n")


# Overrides.


@pytest.mark.parametrize(
    "text, says",
    [
        ("sft.lr=1", "SFT has no field 'lr'; did you mean 'sft.optimizer.lr'?"),
        ("sft.learning_rate=1", "SFT has no field 'learning_rate'; did you mean 'sft.optimizer.lr'?"),
        ("sft.optimizer.lrr=1", "OptimizerConfig has no field 'lrr'; did you mean 'sft.optimizer.lr'?"),
        ("sft.num_train_epochs=1", "did you mean 'sft.epochs'?"),
        ("grpo-0.max_new_tokens=1", "did you mean 'grpo-0.sampling.max_new_tokens'?"),
        ("grpo-0.num_generations=8", "did you mean 'grpo-0.samples'?"),
        ("sft.path=x", "did you mean 'sft.data.sources.0.path'?"),
        ("sft.data.sources.0.pth=x", "Source has no field 'pth'; did you mean 'sft.data.sources.0.path'?"),
        ("lr=1", "Recipe has no field 'lr'; did you mean 'pretrain.optimizer.lr'?"),
        ("stf.batch=1", "recipe quickstart has no stage 'stf' (did you mean 'sft.batch'?); it has data, tokenizer,"),
        ("sft.batch=many", "sft.batch: 'many' is not a whole number"),
        ("tokenizer.vocab_size=0", "tokenizer.vocab_size: 0 is not a whole number of at least 1"),
        ("sft.zzzz=1", "SFT has no field 'zzzz'; it has name, seed, model, init"),
    ],
)  # fmt: skip
def test_an_unknown_field_suggests_the_path_that_was_meant(text, says):
    with pytest.raises(UserError) as caught:
        load_recipe(QUICKSTART, [text])
    assert str(caught.value).startswith(says) or says in str(caught.value)


@pytest.mark.parametrize(
    "texts",
    [
        ["grpo-0.batch=3", "grpo-0.mini_batch=6"],  # 64 does not divide 12 responses, and 6 does not divide 128
        ["grpo-0.mini_batch=6", "grpo-0.batch=3"],
        ["sft.data.kind=text", "sft.data.template=none"],
        ["sft.init=none", "sft.model=olmo2-30m"],
    ],
)
def test_overrides_that_are_valid_together_are_accepted(texts):
    for text in texts:
        with pytest.raises(UserError):
            load_recipe(QUICKSTART, [text])
    changed = load_recipe(QUICKSTART, texts)
    for text in texts:
        path, _, value = text.partition("=")
        stage, _, rest = path.partition(".")
        found = changed.stage(stage)
        for part in rest.split("."):
            found = getattr(found, part)
        assert str(found).lower() == value


def test_the_last_of_two_overrides_of_one_field_counts_and_a_field_inside_another_override_is_refused():
    assert load_recipe(QUICKSTART, ["sft.batch=4", "mesh=dp=1", "sft.batch=16"]).stage("sft").batch == 16
    with pytest.raises(UserError, match="sft.validation and sft.validation.every are both set"):
        load_recipe(QUICKSTART, ["sft.validation=none", "sft.validation.every=3"])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_override_that_a_help_names_exists(name, capsys):
    assert main([name, "--help"]) == 0
    for path in re.findall(r"\bsft\.([\w.]+)=", capsys.readouterr().out):
        value = load_recipe(QUICKSTART).stage("sft")
        for part in path.split("."):
            assert part in fields.field_types(type(value)), path
            value = getattr(value, part)


def test_the_message_of_a_missing_value_names_an_override_that_exists(capsys):
    example = re.search(r"write for example sft\.(\S+)$", refused(capsys, "run", QUICKSTART, "sft"))[1]
    assert load_recipe(QUICKSTART, [f"sft.{example}"])


# What is no recipe.


def test_a_recipe_that_ends_the_program_is_no_success(capsys, tmp_path):
    for text, says in {
        "import sys\nsys.exit(0)\n": "recipe.py:2: the recipe ended with SystemExit(0) before it set `recipe`",
        "raise SystemExit\n": "recipe.py:1: the recipe ended with SystemExit() before it set `recipe`",
        "\nraise KeyboardInterrupt\n": "recipe.py:2: the recipe ended with KeyboardInterrupt()",
        "raise GeneratorExit\n": "recipe.py:1: GeneratorExit",
        "class Odd(BaseException):\n    pass\nraise Odd('x\\ny')\n": "recipe.py:3: Odd: x y",
        "open('none.txt')\n": "recipe.py:1: No such file or directory: none.txt",
        "def f():\n    f()\nf()\n": "recipe.py:2: RecursionError",
        f"{EMPTY}import sys\nsys.exit(0)\n": "recipe.py:4: the recipe ended with SystemExit(0)",
    }.items():
        path = tmp_path / "recipe.py"
        path.write_text(text)
        for command in (("run", str(path)), ("run", str(path), "--list"), ("plan", str(path), "--topology", "v5p-8")):
            assert says in refused(capsys, *command)


def what_is_no_recipe(folder: Path) -> dict[str, tuple[object, str]]:
    """By name: a path and what is said of it."""
    (folder / "folder.py").mkdir()
    (folder / "no_recipe.py").write_text("x = 1\n")
    (folder / "other.py").write_text("recipe = {'name': 'x'}\n")
    (folder / "latin.py").write_bytes(b"x = '\xe4'\n")
    (folder / "zero.py").write_bytes(b"x = 1\0\n")
    (folder / "recipe.txt").write_text(EMPTY)
    (folder / "dangling.py").symlink_to(folder / "gone.py")
    (folder / "circle.py").symlink_to(folder / "circle.py")
    return {
        "a folder": (folder / "folder.py", "is a folder, not a recipe"),
        "the folder itself": (folder, "is a folder, not a recipe"),
        "the root": ("/", "is a folder, not a recipe"),
        "empty": ("", "an empty value is not a name or a path"),
        "too long": ("a" * 5000, "File name too long"),
        "a long path": (f"{folder}/{'b' * 300}.py", "File name too long"),
        "dangling": (folder / "dangling.py", "no recipe at"),
        "a circle": (folder / "circle.py", "Too many levels of symbolic links"),
        "without parent": (folder / "none" / "recipe.py", "no recipe at"),
        "below a file": (folder / "recipe.txt" / "recipe.py", "no recipe at"),
        "not UTF-8": (folder / "latin.py", "latin.py:1: SyntaxError"),
        "a zero byte": (folder / "zero.py", "zero.py"),
        "not Python": (folder / "recipe.txt", "is not a Python file"),
        "a device": ("/dev/null", "no recipe at /dev/null"),
        "no value": (folder / "no_recipe.py", "holds no recipe; it must set `recipe = Recipe(...)`"),
        "another value": (folder / "other.py", "holds no recipe"),
    }


def test_what_is_no_recipe_is_told_in_one_line(capsys, tmp_path):
    for name, (path, says) in what_is_no_recipe(tmp_path).items():
        line = refused(capsys, "run", str(path), "--list")
        assert says in line and len(line) < 1000, name
    with pytest.raises(UserError, match="no recipe at"):
        find_recipe(os.fsdecode(b"caf\xe9.py"))


# Installed recipes by name.


def test_recipes_lists_every_installed_recipe_with_the_first_line_of_its_docstring(capsys, tmp_path):
    assert main(["recipes", "--json", str(tmp_path / "recipes.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(installed_recipes()) and len(lines) > 60
    assert next(line for line in lines if line.startswith("tulu3/sft_8b ")).endswith(
        "Tülu 3 8B: supervised fine-tuning of Llama 3.1 8B (arXiv 2411.15124, Tables 7, 11 and 14)"
    )
    written = json.loads((tmp_path / "recipes.json").read_text())["recipes"]
    assert [row["name"] for row in written] == list(installed_recipes())
    assert main(["recipes", "SPURIOUS"]) == 0
    assert all("spurious" in line.lower() for line in capsys.readouterr().out.splitlines())
    assert "no recipe with 'nothing'" in refused(capsys, "recipes", "nothing")


@pytest.mark.parametrize("name", ("tulu3/sft_8b", "tulu3/sft_8b.py", "recipes/tulu3/sft_8b.py", "quickstart"))
def test_an_installed_recipe_is_found_by_its_name_from_any_folder(name, capsys):
    expected = REPOSITORY / "recipes" / ("quickstart.py" if name == "quickstart" else "tulu3/sft_8b.py")
    assert find_recipe(name).samefile(expected)
    assert main(["run", name, "--list"]) == 0
    assert "not started" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, says",
    [
        ("tulu3/sft_88b", "no recipe at tulu3/sft_88b; did you mean 'tulu3/sft_8b'?"),
        ("tulu3/stf_8b.py", "did you mean 'tulu3/sft_8b'?"),
        ("quikstart", "did you mean 'quickstart'?"),
        ("recipes/quikstart.py", "did you mean 'recipes/quickstart.py'?"),
        ("nothing_like_it", "one of the names that `easylm recipes` lists"),
    ],
)
def test_an_unknown_name_suggests_the_nearest_in_every_command_that_takes_a_recipe(name, says, capsys):
    for command in (("run", name), ("plan", name, "--topology", "v5p-8")):
        assert says in refused(capsys, *command)


def test_data_build_takes_a_recipe_by_its_name(monkeypatch, capsys):
    built = []
    monkeypatch.setattr("easylm_jax.cli.data._build_recipe", lambda arguments: built.append(arguments.sources))
    assert main(["data", "build", "quickstart"]) == 0
    assert built == [["quickstart"]]
    Path("quickstart").mkdir()  # a folder of data comes before an installed recipe of its name
    assert "data: build needs --tokenizer" in refused(capsys, "data", "build", "quickstart", "--out", "cache")


# What lies beside a recipe.

BESIDE = """
from words import short


def length(response, record):
    \"\"\"1 for a response of at most `most` characters.\"\"\"
    return float(len(response) <= record["most"])


def polite(response, record):
    return float("please" in short(response))


def records(seed):
    return {"rows.jsonl": [{"text": f"row {i}"} for i in range(seed + 2)]}


def ends(seed):
    raise SystemExit(0)


def nothing(seed):
    return None
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a recipe and two modules; the current folder is another. Its modules are forgotten afterwards."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "own_rewards.py").write_text(BESIDE)
    (folder / "words.py").write_text("def short(text):\n    return text.lower()\n")
    (folder / "models.py").write_text("raise RuntimeError('hides the installed package')\n")
    (folder / "recipe.py").write_text(
        "import own_rewards\nfrom easylm_jax.config import MakeData, Recipe\n"
        "recipe = Recipe('own', tuple(MakeData(name, function=f'own_rewards:{name}')"
        " for name in ('records', 'ends', 'nothing')))\n"
    )
    monkeypatch.chdir(tmp_path)
    yield folder
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    for name, file in files.items():
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def test_modules_beside_a_recipe_are_found_by_the_recipe_and_by_worker_processes(project):
    load_recipe(str(project / "recipe.py"))
    with Pool(workers=1, lookup=LOOKUP) as pool:
        found = pool.verdicts(["own_rewards:length", "own_rewards:polite"], ["Please!", "no"], [{"most": 3}] * 2)
    assert found.values.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_workers_find_the_modules_of_a_recipe_that_is_loaded_after_they_were_started(project, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "other_rewards.py").write_text("def one(response, record):\n    return 1.0\n")
    (other / "recipe.py").write_text(EMPTY)
    load_recipe(str(project / "recipe.py"))
    with Pool(workers=1, lookup=LOOKUP) as pool:
        pool.verdicts(["own_rewards:polite"], ["no"], [{}])
        load_recipe(str(other / "recipe.py"))
        assert pool.verdicts(["other_rewards:one"], ["no"], [{}]).values.tolist() == [[1.0]]


def test_a_function_beside_a_recipe_makes_its_data_and_cannot_end_the_program_with_success(project, capsys):
    recipe = str(project / "recipe.py")
    assert main(["run", recipe, "--only", "records", "--out", "out"]) == 0
    capsys.readouterr()
    assert [json.loads(line) for line in Path("out/own/records/rows.jsonl").read_text().splitlines()] == [
        {"text": "row 0"}, {"text": "row 1"},
    ]  # fmt: skip
    for name, says in {
        "ends": "stage ends: own_rewards:ends failed: SystemExit(0)",
        "nothing": "stage nothing: own_rewards:nothing returned a NoneType; it must return a dictionary of file names",
    }.items():
        assert main(["run", recipe, "--only", name, "--out", "out"]) == 2
        assert says in capsys.readouterr().err


def test_a_function_that_is_missing_is_told_with_the_file_that_was_looked_into(project):
    load_recipe(str(project / "recipe.py"))
    (project / "ends.py").write_text("import sys\nsys.exit(0)\n")
    for name, says in {
        "own_rewards:politr": f"module 'own_rewards' has no attribute 'politr' ({project / 'own_rewards.py'})",
        "models:length": f"({REPOSITORY / 'models/__init__.py'})",
        "ends:length": "SystemExit(0)",
    }.items():
        with pytest.raises(UserError) as caught:
            load_function(name)
        assert says in str(caught.value)


def test_a_run_with_a_verifier_beside_its_recipe_resumes_from_another_folder(project, tmp_path):
    import rl_kit
    from support import launcher

    (project / "share.py").write_text(
        "def of_e(response, record):\n    return response.count('e') / max(len(response), 1)\n"
    )
    text = "grpo('own', steps=2, reward=Reward(verifier='share:of_e', missing_end=0.0))"
    recipe = rl_kit.recipe_file(project, text)
    out = rl_kit.copy_of_run(tmp_path / "runs")
    run = ("run", recipe, "--only", "own", "--out", out)
    killed = launcher().run(*run, at="easylm_jax.train.rl.trainer:RolloutLoop._next_kl:2:SIGKILL")
    assert killed.status == -9, killed.err
    assert not (out / "rl/own/done.json").exists()
    result = launcher().run(*run)
    assert result.status == 0, result.err
    scores = [line["score"] for line in rl_kit.lines(out / "rl/own")]
    assert json.loads((out / "rl/own/done.json").read_text())["stage"] == "own" and max(scores) > 0
