"""The three rooms: recipes may import easylm_jax and models, easylm_jax may import models, models neither."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("models", "easylm_jax", "recipes")  # each may import itself and the rooms before it
STANDARD = sys.stdlib_module_names
MODELS_MAY_IMPORT = {"jax", "flax", "numpy", "models"}
EXCEPTIONS = {
    "models/hf/files.py": {"safetensors"},
}
PREPARATION_ONLY = {
    "tensorflow",
    "tensorflow_text",
    "tensorflow_datasets",
    "seqio",
    "datasets",
    "transformers",
    "torch",
}
FILES = sorted(path.relative_to(REPOSITORY).as_posix() for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))


def imports(file: str, text: str, *, at_import: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import in the file; `at_import`: of those that importing it runs."""
    package = file.split("/")[:-1]

    def visit(node: ast.AST) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() if at_import:
                    continue
                case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")) if at_import:
                    continue
                case ast.Import(names=names):
                    yield from ((child.lineno, name.name) for name in names)
                case ast.ImportFrom(module=module, level=level, names=names):
                    parents = package[: len(package) - level + 1] if level else []
                    base = ".".join([*parents, *([module] if module else [])])
                    yield from ((child.lineno, f"{base}.{name.name}") for name in names)
                case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                    yield child.lineno, name
            yield from visit(child)

    yield from visit(ast.parse(text))


def top(name: str) -> str:
    return name.split(".")[0]


def steps_up(file: str, text: str) -> list[str]:
    """Imports of a room above the file's own."""
    above = ROOMS[ROOMS.index(file.split("/")[0]) + 1 :]
    return [f"{file}:{line} imports {name}" for line, name in imports(file, text) if top(name) in above]


def foreign_to_models(file: str, text: str) -> list[str]:
    allowed = MODELS_MAY_IMPORT | EXCEPTIONS.get(file, set()) | STANDARD
    return [f"{file}:{line} imports {name}" for line, name in imports(file, text) if top(name) not in allowed]


def heavy_at_import(file: str, text: str) -> list[str]:
    found = imports(file, text, at_import=True)
    return [f"{file}:{line} imports {name}" for line, name in found if top(name) in PREPARATION_ONLY]


def test_every_room_that_exists_is_walked():
    assert "models/config.py" in FILES and "easylm_jax/cli/main.py" in FILES


@pytest.mark.parametrize("file", FILES)
def test_imports_run_one_way(file):
    assert steps_up(file, (REPOSITORY / file).read_text()) == []


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("models/")])
def test_models_know_only_jax_flax_and_numpy(file):
    assert foreign_to_models(file, (REPOSITORY / file).read_text()) == []


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("easylm_jax/")])
def test_what_only_preparation_needs_is_imported_inside_functions(file):
    assert heavy_at_import(file, (REPOSITORY / file).read_text()) == []


def test_command_line_imports_only_the_standard_library_at_its_top():
    text = (REPOSITORY / "easylm_jax/cli/main.py").read_text()
    names = {top(name) for _, name in imports("easylm_jax/cli/main.py", text, at_import=True)}
    assert names - STANDARD == set()


@pytest.mark.parametrize(
    "check, file, text, caught",
    [
        (steps_up, "models/a.py", "from easylm_jax.config import X", True),
        (steps_up, "models/sub/a.py", "def f():\n    import recipes", True),
        (steps_up, "easylm_jax/a.py", "import importlib\nimportlib.import_module('recipes.quickstart')", True),
        (steps_up, "easylm_jax/a.py", "from models.config import X\nfrom . import b", False),
        (steps_up, "recipes/a.py", "import easylm_jax, models", False),
        (foreign_to_models, "models/a.py", "import optax", True),
        (foreign_to_models, "models/sub/a.py", "from ..config import X\nfrom jax import numpy", False),
        (foreign_to_models, "models/a.py", "import safetensors", True),
        (foreign_to_models, "models/hf/files.py", "from safetensors import safe_open", False),
        (heavy_at_import, "easylm_jax/a.py", "class A:\n    import seqio", True),
        (heavy_at_import, "easylm_jax/a.py", "try:\n    from tensorflow import io\nexcept ImportError: pass", True),
        (heavy_at_import, "easylm_jax/a.py", "def f():\n    import torch", False),
        (heavy_at_import, "easylm_jax/a.py", "if TYPE_CHECKING:\n    import seqio", False),
    ],
)
def test_the_walk_catches_each_kind_of_import(check, file, text, caught):
    assert bool(check(file, text)) is caught


def test_importing_every_module_loads_nothing_that_only_preparation_needs():
    """The training path is these modules; recipes are data and may name anything."""
    names = [file.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for file in FILES]
    names = [name for name in names if top(name) != "recipes" and not name.endswith("__main__")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted({PREPARATION_ONLY!r} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module, names",
    [
        ("models", ["load_hf", "save_hf", "build", "logits", "preset", "presets", "DecoderConfig", "Compute"]),
        ("models.errors", ["UserError"]),
        (
            "easylm_jax.runtime.monitor",
            ["MetricsWriter", "Monitor", "Progress", "StopRequest", "Throughput", "Watchdog"],
        ),
        ("easylm_jax.checkpoint", ["Checkpointer", "Retention", "restore_params", "guard_fresh_start"]),
        ("easylm_jax.data", ["DataSpec", "Source", "build_cache", "open_cache", "Loader", "load_tokenizer"]),
        ("easylm_jax.experiment", ["run"]),
        ("easylm_jax.cli.main", ["main"]),
    ],
)
def test_public_names_are_where_others_expect_them(module, names):
    loaded = importlib.import_module(module)
    assert [name for name in names if not hasattr(loaded, name)] == []
