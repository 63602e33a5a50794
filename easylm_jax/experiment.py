"""Runs a recipe: its stages in the order of their needs, finished ones skipped, the one cut short resumed.

    runs/<recipe>/<stage>/   config.json  metrics.jsonl  checkpoints/  done.json
    runs/cache/              packed data caches, shared by every run

`done.json` says what a stage produced and under which settings; a stage whose settings (or whose inputs' settings)
changed since is not run over, but named with what differs.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from easylm_jax import report
from easylm_jax.checkpoint import needs, store
from easylm_jax.checkpoint.checkpointer import config_difference, guard_fresh_start
from easylm_jax.config import (
    DPO,
    GRPO,
    PPO,
    SFT,
    BestOfN,
    Evaluate,
    MajorityVote,
    MakeData,
    OnlineDPO,
    Pretrain,
    Recipe,
    RewardModel,
    Stage,
    Tokenizer,
    fields,
)  # fmt: skip
from easylm_jax.config.load import load_recipe
from easylm_jax.config.workspace import Workspace
from easylm_jax.data.stage import make_data, train_tokenizer
from easylm_jax.evaluate import evaluate
from easylm_jax.plan.programs import (
    PlannedProgram,
    Programs,
    collect,
    evaluation,
    generation,
    reinforcement,
    training,
)  # fmt: skip
from easylm_jax.runtime import files, processes
from easylm_jax.runtime.functions import resolve
from easylm_jax.runtime.host_memory import keep_freed_memory
from easylm_jax.runtime.processes import end_at_once, initialize_processes, log_once
from easylm_jax.synthesize.best_of_n import best_of_n
from easylm_jax.synthesize.majority_vote import majority_vote
from easylm_jax.train.loop import Stopped
from easylm_jax.train.rl.stage import train_on_rollouts
from easylm_jax.train.stage import train_on_data
from models.errors import UserError

STOPPED = 130


@dataclasses.dataclass(frozen=True)
class StageKind:
    """What the runner knows of a kind of stage.

    `run(stage, workspace)` runs a stage to its end, resuming what is there, and returns what `done.json` will say.
    `programs(stage, recipe, mesh)` are those that it runs on devices, lowered from shapes, for `easylm plan`.
    """

    run: Callable[[Any, Workspace], dict[str, Any]] | str
    programs: Programs | str | None = None


# Every kind of stage: a new one is a dataclass, a function that runs it, and a line here. A line may give them as
# "module:name"; nothing is imported then before a recipe has such a stage.
STAGES: dict[type[Stage] | str, StageKind] = {
    MakeData: StageKind(make_data),
    Tokenizer: StageKind(train_tokenizer),
    Pretrain: StageKind(train_on_data, training),
    SFT: StageKind(train_on_data, training),
    RewardModel: StageKind(train_on_data, training),
    DPO: StageKind(train_on_data, training),
    PPO: StageKind(train_on_rollouts, reinforcement),
    GRPO: StageKind(train_on_rollouts, reinforcement),
    OnlineDPO: StageKind(train_on_rollouts, reinforcement),
    BestOfN: StageKind(best_of_n, generation),
    MajorityVote: StageKind(majority_vote, generation),
    Evaluate: StageKind(evaluate, evaluation),
}


def programs_of(stage: Stage, recipe: Recipe, mesh: jax.sharding.Mesh) -> list[PlannedProgram]:
    """The programs of a stage on a mesh, for a plan; none for a stage that runs none."""
    programs = kind_of(stage).programs
    return [] if programs is None else collect(resolve(programs), stage, recipe, mesh)


def kind_of(stage: Stage) -> StageKind:
    """The kind of a stage, or of the nearest class that it derives from."""
    keys = (key for cls in type(stage).__mro__ for key in (cls, f"{cls.__module__}:{cls.__name__}"))
    found = next((STAGES[key] for key in keys if key in STAGES), None)
    if found is None:
        raise UserError(f"stage {stage.name}: a {type(stage).__name__} cannot be run; it has no line in STAGES")
    return found


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
        waiting = [stage for stage in chosen if overwrite or experiment.done(stage) is None]
        needs.check(waiting, log_once)
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


def _told(error: Exception, out: str) -> Exception:
    """A disk that is full or must not be written is the user's to mend; any other error stays as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        where = error.filename or f"below {out}"
        return UserError(f"cannot write {where}: {error.strerror}; make room, or choose another folder with --out")
    return error


class Experiment(Workspace):
    """Runs the stages of a recipe in its workspace."""

    def progress(self, stage: Stage) -> str:
        """How far a stage is, in words."""
        done = self.done(stage)
        if done is not None:
            return "done" if done["hash"] == fields.digest(self.settings(stage)) else "done, with other settings"
        steps = store.committed_steps(self.folder(stage.name) / "checkpoints")
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
            log_once(f"{stage.name}: done ({folder})")
            return
        processes.barrier(f"{stage.name} looked at")  # by all processes, before the first one changes anything
        if overwrite and processes.is_first_process():
            guard_fresh_start(folder / "checkpoints", overwrite=True)
            for name in ("done.json", "metrics.jsonl", "table.json"):
                (folder / name).unlink(missing_ok=True)
            for name in ("parts", "models", "samples"):  # what best-of-N, an evaluation and rollouts have so far
                shutil.rmtree(folder / name, ignore_errors=True)
        _write_json(folder / "config.json", {"recipe": self.recipe.name, "mesh": self.recipe.mesh,
                                             "stage": fields.encode(stage), "settings": settings})  # fmt: skip
        began = time.time()
        result = resolve(kind_of(stage).run)(stage, self)
        # A stage that was stopped and resumed tells how long all its parts took.
        seconds = max(time.time() - began, result.get("metrics", {}).pop("wall_seconds", 0.0))
        _write_json(folder / "done.json", {"stage": stage.name, "kind": type(stage).__name__, "family": stage.family,
                                           "hash": fields.digest(settings), "seconds": seconds,
                                           **result})  # fmt: skip
        processes.barrier(f"{stage.name} done")  # later stages look for done.json on every process

    def tell(self, chosen: list[Stage]) -> None:
        """Prints the tables of the stages that were asked for, and writes the page that shows the whole run."""
        if not (processes.is_first_process() and any(stage.family == "evaluate" for stage in chosen)):
            return
        print(report.tables.text(report.collect(self.root)))
        print(f"\nEverything is in {self.root}; the whole run with figures: {report.write(self.root)}")

    def _refuse_other_settings(self, stage: Stage, folder: Path, settings: dict[str, Any]) -> None:
        path = folder / "config.json"
        started = store.committed_steps(folder / "checkpoints") or (folder / "done.json").is_file()
        if not (started and path.is_file()):
            return
        changes = config_difference(json.loads(path.read_text())["settings"], settings)
        if changes:
            raise UserError(
                f"stage {stage.name} in {folder} was run with other settings ({'; '.join(changes[:3])}"
                f"{' …' if len(changes) > 3 else ''}); use another --out, or --overwrite to begin again"
            )


def _keep_compiled_programs(out: Path) -> None:
    """Compiled programs are kept on disk, so that a resumed run starts at once."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str((out / "cache" / "programs").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _write_json(path: Path, value: Any) -> None:
    """Written by one process of those that share the folder."""
    if processes.is_first_process():
        files.write_json(path, value)
