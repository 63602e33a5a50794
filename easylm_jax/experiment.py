"""Runs a recipe: its stages in dependency order; finished stages are skipped and an interrupted stage is resumed.

    runs/<recipe>/<stage>/   config.json  metrics.jsonl  checkpoints/  done.json
    runs/cache/              packed data caches, shared by every run

`done.json` records what a stage produced and with which settings. A stage whose settings, or those of its inputs, have
changed since is not overwritten: the run ends with an error that names the differences. Of two runs that come to the
same stage of one folder at once, the second ends with an error that names the first (`runtime.locks`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import jax

from easylm_jax import report
from easylm_jax.checkpoint import needs, preflight, store
from easylm_jax.checkpoint.derive import add_vision, average, upcycle
from easylm_jax.checkpoint.resume import config_difference, guard_fresh_start
from easylm_jax.config import (
    DPO,
    GRPO,
    PPO,
    SFT,
    AddVision,
    Average,
    BestOfN,
    Binarise,
    Dialogues,
    Evaluate,
    Losses,
    MajorityVote,
    MakeData,
    OnlineDPO,
    PersonaPrompts,
    PreferenceTable,
    Pretrain,
    Rate,
    Recipe,
    Respond,
    Revisions,
    RewardModel,
    SelectPrompts,
    SelfInstruct,
    Stage,
    Tokenizer,
    Topics,
    Upcycle,
    fields,
)  # fmt: skip
from easylm_jax.config.load import load_recipe
from easylm_jax.config.workspace import MEND, Workspace
from easylm_jax.data.stage import make_data, train_tokenizer
from easylm_jax.evaluate import evaluate
from easylm_jax.evaluate.columns import asker
from easylm_jax.evaluate.losses import losses
from easylm_jax.plan import topology
from easylm_jax.plan.programs import (
    Program,
    ProgramBuilder,
    collect,
    evaluation,
    generation,
    reinforcement,
    training,
)  # fmt: skip
from easylm_jax.runtime import exit_status, files, mounts, processes
from easylm_jax.runtime.functions import resolve
from easylm_jax.runtime.host_memory import dispatch_one_at_a_time, keep_freed_memory
from easylm_jax.runtime.locks import Locked, locked
from easylm_jax.runtime.mesh import ELASTIC, Indivisible
from easylm_jax.runtime.monitor import duration
from easylm_jax.runtime.processes import end_at_once, initialize_processes, log_once
from easylm_jax.synthesize.best_of_n import best_of_n
from easylm_jax.synthesize.majority_vote import majority_vote
from easylm_jax.train.loop import Stopped
from easylm_jax.train.rl.stage import train_on_rollouts
from easylm_jax.train.stage import train_on_data
from models import reading
from models.errors import UserError

LOCK = ".lock"  # in a stage's folder: names the process that runs the stage


class _Config(TypedDict):
    """What is read of a stage's `config.json`."""

    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StageKind:
    """How a kind of stage is run and planned.

    Attributes:
        run: `(stage, workspace)` → the content of `done.json`; runs a stage to its end, resuming earlier work.
        programs: `(stage, recipe, mesh)` → its device programs, lowered from shapes, for `easylm plan`; None if it has
            none.
    """

    run: Callable[[Any, Workspace], dict[str, Any]] | str
    programs: ProgramBuilder | str | None = None


# All kinds of stages. A new kind is a dataclass, a function that runs it, and an entry here. An entry may give them as
# "module:name", which is imported when a recipe has such a stage.
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
    Topics: StageKind("easylm_jax.synthesize.topics:make_topics"),
    Dialogues: StageKind("easylm_jax.synthesize.dialogues:make_dialogues"),
    Revisions: StageKind("easylm_jax.synthesize.revisions:make_revisions"),
    SelectPrompts: StageKind("easylm_jax.synthesize.select_prompts:select_prompts"),
    Respond: StageKind("easylm_jax.synthesize.respond:respond"),
    Rate: StageKind("easylm_jax.synthesize.rate:rate"),
    Binarise: StageKind("easylm_jax.synthesize.binarise:binarise"),
    PersonaPrompts: StageKind("easylm_jax.synthesize.personas:persona_prompts"),
    SelfInstruct: StageKind("easylm_jax.synthesize.self_instruct:self_instruct"),
    Evaluate: StageKind(evaluate, evaluation),
    PreferenceTable: StageKind("easylm_jax.evaluate.preferences.stage:preference_table"),
    Losses: StageKind(losses),
    "easylm_jax.config.moderation:ModerationTable": StageKind("easylm_jax.evaluate.moderation_stage:moderation_table"),
    Average: StageKind(average),
    Upcycle: StageKind(upcycle),
    AddVision: StageKind(add_vision),
}


def programs_of(stage: Stage, recipe: Recipe, mesh: jax.sharding.Mesh) -> Iterator[Program]:
    """The device programs of a stage on a mesh, for `easylm plan`; none if it has none."""
    programs = kind_of(stage).programs
    return iter(()) if programs is None else collect(resolve(programs), stage, recipe, mesh)


def kind_of(stage: Stage) -> StageKind:
    """The entry of `STAGES` for a stage's class, or for its nearest base class."""
    keys = (key for cls in type(stage).__mro__ for key in (cls, f"{cls.__module__}:{cls.__name__}"))
    kind = next((STAGES[key] for key in keys if key in STAGES), None)
    if kind is None:
        raise UserError(
            f"stage {stage.name}: a {type(stage).__name__} cannot be run; add it to STAGES in easylm_jax/experiment.py"
        )
    return kind


def run(
    path: str,
    overrides: list[str] | tuple[str, ...] = (),
    only: str | None = None,
    out: str = "runs",
    overwrite: bool = False,
    list_stages: bool = False,
    show_config: bool = False,
) -> int:
    """Implements `easylm run`; returns the exit status."""
    try:
        out = mounts.local_path(out)
    except mounts.NotMountedError as error:
        raise UserError(f"--out {error}") from None
    recipe = load_recipe(path, overrides)
    if show_config:
        print(json.dumps(fields.encode(recipe), indent=2))
        return 0
    experiment = Experiment(recipe, Path(out))
    in_order = experiment.in_order()
    chosen = in_order if only is None else [recipe.stage(only)]
    if list_stages:
        for stage in chosen:
            print(f"{stage.name:<24} {experiment.progress(stage)}")
        return 0
    keep_freed_memory()
    dispatch_one_at_a_time()
    initialize_processes()
    _keep_compiled_programs(Path(out))
    processes.barrier("start")
    try:
        _check_pod(recipe)
        processes.require_shared_folder(Path(out))
        unfinished = [stage for stage in chosen if overwrite or experiment.done(stage) is None]
        needs.check(unfinished, log_once)
        preflight.check_models(unfinished, experiment)
        if only is None and _only_seeds_changed(overrides):
            experiment.print_estimate()
        for stage in chosen:
            experiment.run(stage, overwrite)
        experiment.print_results(chosen)
    except Stopped as stopped:
        print(f"easylm: {stopped}", file=sys.stderr)
        return exit_status.STOPPED
    except Exception as error:
        reported = _as_user_error(error, out)
        if isinstance(error, Indivisible) and os.environ.get(ELASTIC):
            end_at_once(error, exit_status.INDIVISIBLE)
        if jax.process_count() > 1:
            end_at_once(reported)
        if reported is error:
            raise
        raise reported from error
    return 0


def _check_pod(recipe: Recipe) -> None:
    """Refuses a pod of another type than the recipe's, where the launcher says what it is (`EASYLM_POD`)."""
    here = os.environ.get("EASYLM_POD")
    if here is None or recipe.pod is None or topology.parse(here) == topology.parse(recipe.pod):
        return
    raise UserError(
        f"recipe {recipe.name} is for a {recipe.pod} and this pod is a {here}; see whether it fits "
        f"with `easylm plan --topology {here}`, and run it with pod={here}"
    )


def _only_seeds_changed(overrides: list[str] | tuple[str, ...]) -> bool:
    """Whether a recipe is as long as its file says: only seeds are overridden."""
    return all(text.partition("=")[0].endswith(".seed") for text in overrides)


def _as_user_error(error: Exception, out: str) -> Exception:
    """A `UserError` for a full or read-only disk, which the user can fix; any other error unchanged."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        path = error.filename or f"below {out}"
        return UserError(f"cannot write {path}: {error.strerror}; make room, or choose another folder with --out")
    return error


class Experiment(Workspace):
    """Runs the stages of a recipe in its workspace."""

    def asker(self, stage: Any, decoder: Any, mesh: Any) -> Callable[[Any, int], dict[str, float]] | None:
        """`evaluate.columns.asker`: the rooms that train and evaluate do not know each other."""
        return asker(stage, self, decoder, mesh)

    def progress(self, stage: Stage) -> str:
        """The progress of a stage, as text."""
        done = self.done(stage)
        if done is not None:
            return "done" if done.get("hash") == fields.digest(self.settings(stage)) else "done, with other settings"
        steps = store.committed_steps(self.folder(stage.name) / "checkpoints")
        return f"at step {steps[-1]}" if steps else "not started"

    def run(self, stage: Stage, overwrite: bool = False) -> None:
        """Runs or resumes one stage, whose inputs must be done; only one run at a time works in a stage's folder.

        Raises:
            UserError: an input is not done, another run works in the folder, or its work is of other settings.
        """
        if self._is_done(stage, overwrite):
            return
        preflight.check_models([stage], self, download=True)
        with self._only_run(stage):
            processes.barrier(f"{stage.name} locked")  # the first process holds the lock before anything is changed
            if not self._is_done(stage, overwrite):  # another run may have finished it since
                self._run(stage, overwrite)

    def _run(self, stage: Stage, overwrite: bool) -> None:
        folder, settings = self.folder(stage.name), self.settings(stage)
        processes.barrier(f"{stage.name} looked at")  # all processes have checked before the first changes anything
        if overwrite and processes.is_first_process():
            guard_fresh_start(folder / "checkpoints", overwrite=True)
            for name in ("done.json", "metrics.jsonl", "table.json"):
                (folder / name).unlink(missing_ok=True)
            for name in ("parts", "models", "samples"):  # partial results of best-of-N, evaluations and rollouts
                shutil.rmtree(folder / name, ignore_errors=True)
        _write_json(folder / "config.json", {"recipe": self.recipe.name, "mesh": self.recipe.mesh,
                                             "stage": fields.encode(stage), "family": stage.family,
                                             "settings": settings})  # fmt: skip
        began = time.time()
        result = resolve(kind_of(stage).run)(stage, self)
        # A resumed stage reports the time of all its runs.
        seconds = max(time.time() - began, result.get("metrics", {}).pop("wall_seconds", 0.0))
        _write_json(folder / "done.json", {"stage": stage.name, "kind": type(stage).__name__, "family": stage.family,
                                           "hash": fields.digest(settings), "seconds": seconds,
                                           **result})  # fmt: skip
        processes.barrier(f"{stage.name} done")  # later stages look for done.json on every process

    def _is_done(self, stage: Stage, overwrite: bool) -> bool:
        """Whether there is nothing to do, which is printed; `UserError` when its folder or its inputs do not fit."""
        folder = self.folder(stage.name)
        if not overwrite:
            self._refuse_other_settings(stage, folder, self.settings(stage))
        for need in stage.needs:
            self._check_input(stage, self.recipe.stage(need))
        if overwrite or not processes.agree_any(self.done(stage) is not None):
            return False
        log_once(f"{stage.name}: done ({folder})")
        return True

    def _check_input(self, stage: Stage, need: Stage) -> None:
        done = self.done(need)
        if done is None:
            raise UserError(
                f"stage {stage.name} needs {need.name}, which is not done; run it first (easylm run --only {need.name})"
            )
        if done.get("hash") != fields.digest(self.settings(need)):
            raise UserError(
                f"stage {stage.name} needs {need.name}, but {self.folder(need.name)} was made with other settings; "
                f"use another --out, or run it again (easylm run --only {need.name} --overwrite)"
            )

    @contextlib.contextmanager
    def _only_run(self, stage: Stage) -> Iterator[None]:
        """Holds the lock of a stage's folder, in the first process; `UserError` when another run holds it."""
        if not processes.is_first_process():
            yield
            return
        folder = self.folder(stage.name)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            try:
                has_locks = held.enter_context(locked(folder / LOCK))
            except Locked as other:
                raise UserError(
                    f"stage {stage.name} in {folder} is being run by {other.owner}; wait for it, stop it, or use "
                    "another --out"
                ) from None
            if not has_locks:
                log_once(f"{stage.name}: {folder} is on a file system without locks; do not start a second run in it")
            yield

    def print_estimate(self) -> None:
        """Prints how long the recipe will take, where it states its length and none of its stages has begun."""
        if self.recipe.length is None or any(self.progress(stage) != "not started" for stage in self.recipe.stages):
            return
        log_once(f"{self.recipe.name}: {duration.announcement(self.recipe.length, duration.probe())}")

    def print_results(self, chosen: list[Stage]) -> None:
        """Prints the tables of the evaluations among `chosen`, and writes the report page of the run."""
        if not (processes.is_first_process() and any(stage.family == "evaluate" for stage in chosen)):
            return
        print(f"Results are in {self.root}; report with figures: {report.write(self.root)}\n")
        print(report.tables.text(report.collect(self.root)), end="")  # the results and what they show come last

    def _refuse_other_settings(self, stage: Stage, folder: Path, settings: dict[str, Any]) -> None:
        """Raises `UserError` when the work in a stage's folder is of other settings; names those of `config.json`."""
        path, done = folder / "config.json", self.done(stage)
        changes: list[str] = []
        if path.is_file() and (done is not None or store.committed_steps(folder / "checkpoints")):
            changes = config_difference(reading.read_json(path, _Config, mend=MEND)["settings"], settings)
        if not changes and done is not None and done.get("hash") != fields.digest(settings):
            changes = ["done.json does not belong to config.json"] if path.is_file() else ["config.json is missing"]
        if changes:
            raise UserError(
                f"stage {stage.name} in {folder} was run with other settings ({'; '.join(changes[:3])}"
                f"{' …' if len(changes) > 3 else ''}); use another --out, or --overwrite to begin again"
            )


def _keep_compiled_programs(out: Path) -> None:
    """Enables JAX's persistent compilation cache, so that a resumed run need not compile again."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str((out / "cache" / "programs").resolve()))


def _write_json(path: Path, value: Any) -> None:
    """Writes a JSON file from the first process only."""
    if processes.is_first_process():
        files.write_json(path, value)
