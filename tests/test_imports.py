"""Imports run one way: a room imports only rooms below it, rooms of one layer do not know each other, and no circle.

Imports count wherever they stand: at the top of a file, inside functions, under `TYPE_CHECKING`, and as the text
"module:function" in a table.
"""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# From the top down; the layout is explained in README.md.
LAYERS = (
    ("recipes", "benchmarks"),
    ("cli",),
    ("experiment",),
    ("plan", "synthesize"),
    ("train", "evaluate"),
    ("rewards",),
    ("checkpoint", "decode"),
    ("data",),
    ("config", "report"),
    ("objectives", "runtime"),
    ("models",),
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
PACKAGES = ("models", "easylm_jax", "recipes")
STANDARD = sys.stdlib_module_names
MODELS_MAY_IMPORT = {"jax", "flax", "numpy", "models"}
EXCEPTIONS = {
    "models/hf/files.py": {"safetensors"},
    "models/molmo/decode.py": {"PIL"},
    "models/molmo/resize.py": {"PIL"},
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
REFERENCE = re.compile(rf"((?:{'|'.join(PACKAGES)})(?:\.\w+)+):(\w+)")
FILES = sorted(
    path.relative_to(REPOSITORY).as_posix() for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")
)
MODULES = {file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): file for file in FILES}


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
                case ast.Dict() if not at_import:
                    constants = [node for node in ast.walk(child) if isinstance(node, ast.Constant)]
                    named = [(node.lineno, REFERENCE.fullmatch(str(node.value))) for node in constants]
                    yield from ((line, f"{found[1]}.{found[2]}") for line, found in named if found)
            yield from visit(child)

    yield from visit(ast.parse(text))


def top(name: str) -> str:
    return name.split(".")[0]


def room_of(file: str) -> str:
    """The room of a file: its folder in easylm_jax, or the package that it belongs to; "" for easylm_jax itself."""
    package, *inside = file.removesuffix(".py").split("/")
    if package != "easylm_jax":
        return package
    return "" if inside[0] in ("__init__", "__main__") else inside[0]


def file_of(name: str, modules: Mapping[str, str] = MODULES) -> str | None:
    """The file that importing `name` (a module, or something in one) runs; None for what is not the project's."""
    return modules.get(name) or modules.get(name.rpartition(".")[0])


def wrong_steps(file: str, text: str, modules: Mapping[str, str] = MODULES) -> list[str]:
    """Imports of a room above the file's own, or beside it."""
    own = room_of(file)
    if own == "":
        return []
    found = []
    for line, name in imports(file, text):
        target = file_of(name, modules)
        room = own if target is None else room_of(target)
        if room not in ("", own) and LAYER[room] <= LAYER[own]:
            found.append(f"{file}:{line} imports {name}")
    return found


def circles(texts: Mapping[str, str]) -> list[list[str]]:
    """Files that import each other, directly or over others, in groups; `texts` are the files' contents by path."""
    modules = {file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): file for file in texts}
    arrows = {
        file: {file_of(name, modules) for _, name in imports(file, text)} - {None, file} for file, text in texts.items()
    }

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(arrows[start])
        while waiting:
            file = waiting.pop()
            if file not in seen:
                seen.add(file)
                waiting += arrows[file]
        return seen

    reach = {file: reached(file) for file in texts}
    groups = {
        frozenset(other for other in reach[file] if file in reach[other]) for file in texts if file in reach[file]
    }
    return sorted(sorted(group) for group in groups)


def foreign_to_models(file: str, text: str) -> list[str]:
    allowed = MODELS_MAY_IMPORT | EXCEPTIONS.get(file, set()) | STANDARD
    return [f"{file}:{line} imports {name}" for line, name in imports(file, text) if top(name) not in allowed]


def heavy_at_import(file: str, text: str) -> list[str]:
    found = imports(file, text, at_import=True)
    return [f"{file}:{line} imports {name}" for line, name in found if top(name) in PREPARATION_ONLY]


def test_every_room_that_exists_has_a_layer():
    assert {room_of(file) for file in FILES} - {""} == set(LAYER) - {"benchmarks"}


def test_a_newcomer_finds_few_names_at_the_top():
    top = {path.name for path in (REPOSITORY / "easylm_jax").iterdir() if path.name != "__pycache__"}
    assert len(top) <= 17 and {name for name in top if name.endswith(".py")} == {
        "__init__.py", "__main__.py", "experiment.py",
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_imports_run_one_way(file):
    assert wrong_steps(file, (REPOSITORY / file).read_text()) == []


def test_no_files_import_each_other_in_a_circle():
    assert circles({file: (REPOSITORY / file).read_text() for file in FILES if not file.startswith("recipes/")}) == []


@pytest.mark.parametrize("module", ["easylm_jax.config", "easylm_jax.rewards.pool_worker", "easylm_jax.cli.main"])
def test_recipes_workers_and_the_command_import_no_jax(module):
    code = f"import sys, {module}; print(sorted({{'jax', 'flax', 'orbax'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert run.returncode == 0 and run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("models/")])
def test_models_know_only_jax_flax_and_numpy(file):
    assert foreign_to_models(file, (REPOSITORY / file).read_text()) == []


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("easylm_jax/")])
def test_what_only_preparation_needs_is_imported_inside_functions(file):
    assert heavy_at_import(file, (REPOSITORY / file).read_text()) == []


def test_command_line_imports_only_the_standard_library_at_its_top():
    own = tuple(f"easylm_jax.{name}" for name in ("cli.main", "cli.parser", "cli.arguments", "runtime.mounts"))
    for file in (f"{name.replace('.', '/')}.py" for name in own):
        names = {name for _, name in imports(file, (REPOSITORY / file).read_text(), at_import=True)}
        assert {top(name) for name in names} - STANDARD <= {"easylm_jax"}
        assert all(name.startswith(own) for name in names if top(name) == "easylm_jax")


@pytest.mark.parametrize(
    "check, file, text, caught",
    [
        (wrong_steps, "models/a.py", "from easylm_jax.config import X", True),
        (wrong_steps, "models/sub/a.py", "def f():\n    import recipes.quickstart", True),
        (wrong_steps, "easylm_jax/data/a.py", "import importlib\nimportlib.import_module('recipes.quickstart')", True),
        (
            wrong_steps,
            "easylm_jax/data/a.py",
            "from models.config import X\nfrom easylm_jax.config import fields",
            False,
        ),
        (wrong_steps, "easylm_jax/train/a.py", "from easylm_jax import evaluate", True),
        (wrong_steps, "easylm_jax/train/a.py", "from easylm_jax.train import step", False),
        (wrong_steps, "easylm_jax/train/a.py", "if TYPE_CHECKING:\n    from easylm_jax.experiment import run", True),
        (wrong_steps, "easylm_jax/data/a.py", "TABLE = {'a': 'easylm_jax.evaluate.tasks:gsm8k'}", True),
        (wrong_steps, "easylm_jax/data/a.py", "TABLE = {'a': 'easylm_jax.runtime.functions:load_function'}", False),
        (wrong_steps, "recipes/a.py", "import easylm_jax.experiment, models", False),
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


def test_the_walk_finds_circles_of_any_length():
    texts = {
        "easylm_jax/data/a.py": "def f():\n    from easylm_jax.data import b",
        "easylm_jax/data/b.py": "from easylm_jax.data.c import X",
        "easylm_jax/data/c.py": "if TYPE_CHECKING:\n    from easylm_jax.data.a import f",
        "easylm_jax/data/d.py": "from easylm_jax.data import a",
    }
    assert circles(texts) == [["easylm_jax/data/a.py", "easylm_jax/data/b.py", "easylm_jax/data/c.py"]]
    assert circles({**texts, "easylm_jax/data/c.py": "import json"}) == []


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
