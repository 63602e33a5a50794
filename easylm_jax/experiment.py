"""Runs a recipe: its stages in the order of their needs, finished ones skipped, the one cut short resumed.

    runs/<recipe>/<stage>/   config.json  metrics.jsonl  checkpoints/  done.json
    runs/cache/              packed data caches, shared by every run

`done.json` says what a stage produced and under which settings; a stage whose settings (or whose inputs' settings)
changed since is not run over, but named with what differs.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import re
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import jax

from easylm_jax import checkpoint_arrays, checkpoint_store, config, fields, files, report, stages
from easylm_jax.checkpoint import config_difference, guard_fresh_start
from easylm_jax.config import DataSpec, Recipe, Source, Stage
from easylm_jax.data import Cache, build_cache
from easylm_jax.host_memory import keep_freed_memory
from easylm_jax.loop import Stopped
from easylm_jax.mesh import end_at_once, initialize_processes
from easylm_jax.monitor import duration
from easylm_jax.stages import say
from models.errors import UserError

STOPPED = 130


def run(
    path: str,
    overrides: list[str] | tuple[str, ...] = (),
    only: str | None = None,
    out: str = "runs",
    overwrite: bool = False,
    list_stages: bool = False,
    show_config: bool = False,
) -> int:
    """What `easylm run` does; returns the exit status."""
    recipe = load_recipe(path, overrides)
    if show_config:
        print(json.dumps(fields.encode(recipe), indent=2))
        return 0
    experiment = Experiment(recipe, Path(out))
    chosen = experiment.in_order() if only is None else [recipe.stage(only)]
    if list_stages:
        for stage in chosen:
            print(f"{stage.name:<24} {experiment.progress(stage)}")
        return 0
    keep_freed_memory()
    initialize_processes()
    _keep_compiled_programs(Path(out))
    try:
        if only is None and _as_written(overrides):
            experiment.announce()
        for stage in chosen:
            experiment.run(stage, overwrite)
        experiment.tell(chosen)
    except Stopped as stopped:
        print(f"easylm: {stopped}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        told = _told(error, out)
        if jax.process_count() > 1:
            end_at_once(told)
        if told is error:
            raise
        raise told from error
    return 0


def _as_written(overrides: list[str] | tuple[str, ...]) -> bool:
    """Whether a recipe is as long as its file says: nothing is overridden but seeds."""
    return all(text.partition("=")[0].endswith(".seed") for text in overrides)


def _told(error: Exception, out: str) -> Exception:
    """A disk that is full or must not be written is the user's to mend; any other error stays as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        where = error.filename or f"below {out}"
        return UserError(f"cannot write {where}: {error.strerror}; make room, or choose another folder with --out")
    return error


def load_recipe(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The `recipe` of a Python file, with `field=value` overrides applied: `mesh=…` or `<stage>.<field>…=…`."""
    file = Path(path).resolve()
    root = next((folder for folder in file.parents if (folder / "recipes").is_dir()), None)
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))  # recipes share data and suites: `from recipes.tulu25 import data`
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; a recipe is one that holds `recipe = Recipe(...)`")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{_place(error, file, path)}: {error}") from error
    except Exception as error:  # a recipe is the user's program: whatever is wrong in it is told with its place
        raise UserError(f"{_place(error, file, path)}: {_in_words(error)}") from error
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path} holds no recipe; it must set `recipe = Recipe(...)` (easylm_jax.config)")
    try:
        fields.check_types(recipe)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for text in overrides:
        recipe = _override(recipe, text)
    return recipe


def _place(error: BaseException, file: Path, path: str) -> str:
    """The recipe's path, with the line of it that an error comes from."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(file)]
    if isinstance(error, SyntaxError) and error.lineno is not None and error.filename == str(file):
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines else path


def _in_words(error: Exception) -> str:
    """An error of a recipe in one line; for a misspelt field, the nearest one."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    cls = getattr(config, found[1], None) if found else None
    if dataclasses.is_dataclass(cls):
        return fields.unknown_field(cls, found[2])
    return f"{type(error).__name__}: {error}"


def _override(recipe: Recipe, text: str) -> Recipe:
    path, _, value = text.partition("=")
    # A stage's name may have a dot in it ("qwen2.5-7b").
    named = [stage.name for stage in recipe.stages if path == stage.name or path.startswith(f"{stage.name}.")]
    name = max(named, key=len, default=path.partition(".")[0])
    rest = path[len(name) + 1 :]
    if not rest:
        if name == "stages" or name in (stage.name for stage in recipe.stages):
            raise UserError(f"{text!r}: name a field of the stage, such as {name}.seed=1")
        return fields.override(recipe, name, value)
    changed = fields.override(recipe.stage(name), rest, value)
    return dataclasses.replace(recipe, stages=tuple(changed if s.name == name else s for s in recipe.stages))


class Experiment:
    """A recipe and the folder that its stages are kept in."""

    def __init__(self, recipe: Recipe, out: Path):
        self.recipe, self.out, self.root = recipe, out, out / recipe.name

    def folder(self, name: str) -> Path:
        """The folder of a stage."""
        return self.root / name

    def in_order(self) -> list[Stage]:
        """All stages, each behind those that it needs."""
        ordered: list[Stage] = []

        def visit(stage: Stage, above: tuple[str, ...]) -> None:
            if stage.name in above:
                raise UserError(f"recipe {self.recipe.name}: stages need each other in a circle: {' → '.join(above)}")
            for need in stage.needs:
                visit(self.recipe.stage(need), (*above, stage.name))
            if stage not in ordered:
                ordered.append(stage)

        for stage in self.recipe.stages:
            visit(stage, ())
        return ordered

    def settings(self, stage: Stage) -> dict[str, Any]:
        """All that decides what a stage produces: its own fields and, under `needs`, those of the stages before it."""
        own = {name: value for name, value in fields.encode(stage).items() if name not in stage.FREE}
        return {**own, "needs": {need: self.settings(self.recipe.stage(need)) for need in stage.needs}}

    def done(self, stage: Stage) -> dict[str, Any] | None:
        """What `done.json` says, or None."""
        path = self.folder(stage.name) / "done.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def progress(self, stage: Stage) -> str:
        """How far a stage is, in words."""
        done = self.done(stage)
        if done is not None:
            return "done" if done["hash"] == fields.digest(self.settings(stage)) else "done, with other settings"
        steps = checkpoint_store.committed_steps(self.folder(stage.name) / "checkpoints")
        return f"at step {steps[-1]}" if steps else "not started"

    def run(self, stage: Stage, overwrite: bool = False) -> None:
        """Runs or resumes one stage whose needs are done."""
        for need in stage.needs:
            if self.done(self.recipe.stage(need)) is None:
                raise UserError(
                    f"stage {stage.name} needs {need}, which is not done; run it first (easylm run --only {need})"
                )
        folder, settings = self.folder(stage.name), self.settings(stage)
        done = None if overwrite else self.done(stage)
        if not overwrite:
            self._refuse_other_settings(stage, folder, settings)
        if done is not None:
            say(f"{stage.name}: done ({folder})")
            return
        checkpoint_arrays.barrier(f"{stage.name} looked at")  # by all processes, before the first one changes anything
        if overwrite and checkpoint_arrays.is_first_process():
            guard_fresh_start(folder / "checkpoints", overwrite=True)
            for name in ("done.json", "metrics.jsonl", "table.json"):
                (folder / name).unlink(missing_ok=True)
            for name in ("parts", "models", "samples"):  # what best-of-N, an evaluation and rollouts have so far
                shutil.rmtree(folder / name, ignore_errors=True)
        _write_json(folder / "config.json", {"recipe": self.recipe.name, "mesh": self.recipe.mesh,
                                             "stage": fields.encode(stage), "settings": settings})  # fmt: skip
        began = time.time()
        result = stages.produce(stage, self, settings)
        # A stage that was stopped and resumed tells how long all its parts took.
        seconds = max(time.time() - began, result.get("metrics", {}).pop("wall_seconds", 0.0))
        _write_json(folder / "done.json", {"stage": stage.name, "kind": type(stage).__name__,
                                           "hash": fields.digest(settings), "seconds": seconds,
                                           **result})  # fmt: skip
        checkpoint_arrays.barrier(f"{stage.name} done")  # later stages look for done.json on every process

    def announce(self) -> None:
        """Says how long the recipe will take, where it states its length and nothing of it is there yet."""
        if self.recipe.length is None or any(self.progress(stage) != "not started" for stage in self.recipe.stages):
            return
        say(f"{self.recipe.name}: {duration.announcement(self.recipe.length, duration.probe())}")

    def tell(self, chosen: list[Stage]) -> None:
        """Prints the tables of the stages that were asked for, and writes the page that shows the whole run."""
        if not (checkpoint_arrays.is_first_process() and any(isinstance(stage, config.Evaluate) for stage in chosen)):
            return
        print(f"Everything is in {self.root}; the whole run with figures: {report.write(self.root)}\n")
        print(report.tables.text(report.collect(self.root)), end="")  # the results and what they show come last

    def _refuse_other_settings(self, stage: Stage, folder: Path, settings: dict[str, Any]) -> None:
        path = folder / "config.json"
        started = checkpoint_store.committed_steps(folder / "checkpoints") or (folder / "done.json").is_file()
        if not (started and path.is_file()):
            return
        changes = config_difference(json.loads(path.read_text())["settings"], settings)
        if changes:
            raise UserError(
                f"stage {stage.name} in {folder} was run with other settings ({'; '.join(changes[:3])}"
                f"{' …' if len(changes) > 3 else ''}); use another --out, or --overwrite to begin again"
            )

    def sources(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        """Sources with `stage:<name>/<file>` replaced by the file that the stage wrote."""
        return tuple(
            dataclasses.replace(source, path=str(self.root / source.path.removeprefix("stage:")))
            if source.path.startswith("stage:") else source
            for source in sources
        )  # fmt: skip

    def data(self, spec: DataSpec) -> DataSpec:
        """The spec with what `stage:<name>` names (the tokenizer, files) replaced by what that stage made."""
        tokenizer = spec.tokenizer
        if tokenizer.startswith("stage:"):
            tokenizer = f"sp:{self.folder(tokenizer.removeprefix('stage:')) / 'tokenizer.model'}"
        return dataclasses.replace(spec, sources=self.sources(spec.sources), tokenizer=tokenizer)

    def cache(self, spec: DataSpec) -> Cache:
        """The packed cache of a spec, built if there is none yet (by one process of those that share the folder)."""
        return build_cache(self.data(spec), self.out / "cache", _progress())

    def result(self, name: str) -> Path:
        """The checkpoint that a finished stage of this recipe leaves to later ones."""
        done = self.done(self.recipe.stage(name))
        if done is None or "checkpoint" not in done:
            raise UserError(f"stage {name} left no checkpoint to start from ({self.folder(name)})")
        return self.folder(name) / done["checkpoint"]


def _keep_compiled_programs(out: Path) -> None:
    """Compiled programs are kept on disk, so that a resumed run starts at once."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str((out / "cache" / "programs").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _progress():
    """A line every few seconds while a cache is built."""
    last = [time.monotonic()]

    def progress(done: int, total: int | None, phase: str) -> None:
        if time.monotonic() - last[0] > 5:
            last[0] = time.monotonic()
            say(f"data: {phase} {done:,}" + (f" of {total:,}" if total else ""))

    return progress


def _write_json(path: Path, value: Any) -> None:
    """Written by one process of those that share the folder."""
    if checkpoint_arrays.is_first_process():
        files.write_json(path, value)
