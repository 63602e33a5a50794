"""What `pip install` gives: the command finds the recipes that come with it, and a wheel has every file."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from easylm_jax.cli.main import main
from easylm_jax.config.catalog import find_recipe
from easylm_jax.config.load import load_recipe
from models.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("easylm_jax", "models", "recipes")


def test_a_recipe_that_is_not_here_is_the_installed_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("recipes/quickstart.py").samefile(REPOSITORY / "recipes" / "quickstart.py")
    assert main(["run", "recipes/quickstart.py", "--list"]) == 0
    assert capsys.readouterr().out.split()[:3] == ["data", "not", "started"]
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_is_here_comes_before_the_installed_one(tmp_path, monkeypatch):
    own = tmp_path / "recipes" / "quickstart.py"
    own.parent.mkdir()
    own.write_text("from easylm_jax.config import Recipe\nrecipe = Recipe('own', ())\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_recipe("recipes/quickstart.py").name == "own"


@pytest.mark.parametrize(
    "path, says",
    [
        ("recipes/quikstart.py", "no recipe at recipes/quikstart.py; did you mean 'recipes/quickstart.py'?"),
        ("nothing.py", "no recipe at nothing.py, and no installed recipe of that name; give the path of a recipe file"),
        ("easylm_jax/experiment.py", "no recipe at easylm_jax/experiment.py, and no installed recipe of that name"),
    ],
)
@pytest.mark.parametrize("command", [("run",), ("plan", "--topology", "v5p-8")])
def test_a_recipe_that_is_nowhere_is_told_in_one_line(path, says, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        find_recipe(path)
    assert main([command[0], path, *command[1:]]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith(f"easylm: error: {says}")


@pytest.mark.slow
def test_a_wheel_has_every_file_that_runs_and_the_licence(tmp_path):
    source = tmp_path / "source"
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet",
         "--disable-pip-version-check", "--wheel-dir", tmp_path, source],
        check=True, timeout=600,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("easylm_jax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        info = next(name.partition("/")[0] for name in inside if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    files = {
        path.relative_to(source).as_posix()
        for name in PACKAGES
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    assert {name for name in inside if not name.startswith(info)} == files
    assert f"{info}/licenses/LICENSE" in inside and "License-Expression: Apache-2.0" in metadata
    assert "easylm = easylm_jax.cli.main:main" in entry_points and "Requires-Dist: jax>=" in metadata
