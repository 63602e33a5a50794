"""One atomic checkpoint each step: arrays and meta together, written by Orbax in the background.

    with Checkpointer(stage / "checkpoints", Retention(latest=2, keep_every=1000)) as checkpointer:
        state, meta = checkpointer.restore(abstract_state)
        checkpointer.save(step, state, meta)

Arrays are stored flat, by dotted name ("params.layers.attn.q.kernel"), so a checkpoint depends neither on the classes
of the state nor on the mesh or the number of processes that wrote it. See `checkpoint_store` for the files.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from easylm_jax.checkpoint import arrays, store
from easylm_jax.checkpoint.store import Retention
from easylm_jax.runtime import processes
from models.errors import UserError

log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores the state of one run in one folder.

    Opening cleans up what a killed run left half-written. All processes of a run make the same calls in the same
    order; process 0 alone deletes and renames.

    Args:
      folder: the stage's `checkpoints` folder, which all processes see; made if missing.
      asynchronous: `save` returns once the arrays are copied to the host; False waits for the commit.
      deadline_seconds: a save that takes longer raises in the next `save` or `wait`.
      when_busy: what `save` does while the previous one is still being written: "wait" for it, so that every step is
        saved, or "skip" this one. At most one save is ever in flight, which bounds memory and disk.
    """

    def __init__(
        self,
        folder: Any,
        retention: Retention | None = None,
        *,
        asynchronous: bool = True,
        deadline_seconds: float = 600.0,
        when_busy: str = "wait",
    ) -> None:
        if when_busy not in ("wait", "skip"):
            raise UserError(f'checkpoints: when_busy is {when_busy!r}; give "wait" or "skip"')
        self.folder = store.as_path(folder)
        self.retention = retention or Retention()
        self.blocked_seconds = 0.0
        self._asynchronous = asynchronous
        self._deadline = deadline_seconds
        self._when_busy = when_busy
        self._flight: _Flight | None = None
        self._last: tuple[int, float] | None = None
        if processes.is_first_process():
            self._open()
        processes.barrier("checkpointer open")
        # Known from here on, so that retention lists nothing: a bucket takes long over hundreds of kept steps.
        self._names: dict[int, str | None] = {}
        for step in self.steps():
            try:
                manifest = store.read_manifest(self.folder / str(step))
            except UserError:  # damaged: `restore` deals with it, and until then it is not deleted
                self._names[step] = "unreadable"
            else:
                self._names[step] = manifest.name
                self._last = (step, manifest.saved_at)
        self._writer = arrays.CheckpointWriter(deadline_seconds)
        self._queue: queue.SimpleQueue[_Flight | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the folder {self.folder}: {error.strerror}; choose another with --out"
            ) from error
        for where in (self.folder, self.folder / store.HISTORY):
            for name in store.clean(where):
                log.info("removed unfinished checkpoint %s", where / name)

    # What is there

    def steps(self) -> list[int]:
        """The committed steps, ascending."""
        return store.committed_steps(self.folder)

    def latest_step(self) -> int | None:
        steps = self.steps()
        return steps[-1] if steps else None

    @property
    def last_committed(self) -> tuple[int, float] | None:
        """The newest commit: (step, Unix time); None before the first."""
        return self._last

    # Saving

    def save(self, step: int, state: Any, meta: dict[str, Any], name: str | None = None) -> bool:
        """Saves `state` (any pytree of arrays) and `meta` (JSON) as one checkpoint.

        Returns when the arrays may be donated or changed; the files are written in the background. A step that is
        there already is written anew, and its old copy stays until the new one commits. Later steps, which a run
        leaves behind when it resumes from an earlier one, are set aside.

        Args:
          name: keeps this step for ever and shows in `easylm checkpoints list`; a named save is never skipped.
        Returns:
          False when the save was skipped because the previous one was still being written.
        Raises:
          UserError: when the previous save failed (disk full, past its deadline, ...); this one is then not started,
            and calling again tries anew. Earlier checkpoints are untouched.
        """
        began = time.perf_counter()
        try:
            if self._when_busy == "skip" and name is None and processes.agree_any(self._is_busy()):
                return False
            self._land()
            text = json.dumps(meta)
            leaves = arrays.named_leaves(state)
            if self.retention.history and step % self.retention.history == 0:
                # Before the full one: a run killed in between resumes earlier and writes both again.
                self._start(
                    self.folder / store.HISTORY / str(step),
                    step,
                    "params",
                    None,
                    arrays.params_in_bfloat16(leaves),
                    text,
                )
                self._land()
            self._start(self.folder / str(step), step, "full", name, leaves, text)
            if not self._asynchronous:
                self._land()
            return True
        finally:
            self.blocked_seconds += time.perf_counter() - began

    def _is_busy(self) -> bool:
        return self._flight is not None and not self._flight.done.is_set()

    def _start(self, target: Any, step: int, kind: str, name: str | None, leaves: dict[str, Any], text: str) -> None:
        replaced = target.with_name(target.name + store.REPLACED)
        try:
            if processes.is_first_process() and store.is_committed(target):
                target.rename(replaced)
            began = time.monotonic()
            self._writer.start(target, leaves, json.loads(text), step=step, kind=kind, name=name)
        except (OSError, ValueError, RuntimeError) as error:
            self._tidy(target)
            explained = self._explain(error, step)
            raise explained from (None if explained is error else error)
        self._flight = _Flight(target, step, kind, name, began)
        self._queue.put(self._flight)

    def _work(self) -> None:
        """The background thread. One for all saves: to start one each time costs 20 ms while XLA has the cores."""
        while (flight := self._queue.get()) is not None:
            self._follow(flight)

    def _follow(self, flight: _Flight) -> None:
        """Waits in the background for a save to commit, then applies retention. Reports through `flight`."""
        try:
            self._writer.wait()
            if flight.kind == "full":
                self._last = (flight.step, time.time())
                self._names[flight.step] = flight.name
            if processes.is_first_process():
                store.remove_tree(flight.target.with_name(flight.target.name + store.REPLACED))
                if flight.kind == "full":
                    self._retain(flight.step)
        except BaseException as error:  # whatever it was must reach the thread that trains
            flight.error = error
            self._tidy(flight.target)
        finally:
            flight.done.set()

    def _retain(self, step: int) -> None:
        for later in [s for s in self._names if s > step]:
            aside = self._forget(later, store.set_aside)
            log.warning("checkpoint %d is from before this run resumed at an earlier step: now %s", later, aside)
        for old in self.retention.doomed(self._names):
            self._forget(old, store.delete_step)

    def _forget(self, step: int, how: Callable[[Any], Any]) -> Any:
        """Deletes a step or sets it aside, unless someone else did so already."""
        del self._names[step]
        path = self.folder / str(step)
        return how(path) if store.is_committed(path) else None

    def _tidy(self, target: Any) -> None:
        """After a failed save: frees its space and puts back what it was to replace."""
        if processes.is_first_process():
            for path in target.parent.glob(target.name + store.TEMPORARY + "*"):
                store.remove_tree(path)
            if store.is_remote(target) and not store.is_committed(target):  # a bucket is written in place
                store.remove_tree(target)
            replaced = target.with_name(target.name + store.REPLACED)
            if replaced.exists() and not store.is_committed(target):
                replaced.rename(target)

    def _land(self) -> None:
        """Waits for the save in flight, at most until its deadline, and raises what went wrong with it."""
        flight = self._flight
        if flight is None:
            return
        left = self._deadline - (time.monotonic() - flight.began)
        if not flight.done.wait(max(left, 0.0)):
            raise UserError(
                f"checkpoint {flight.step} is still not written after {self._deadline:g} s (deadline_seconds) in "
                f"{self.folder}: the storage or another process hangs; {self._fallback()}"
            )
        self._flight = None
        if flight.error is not None:
            explained = self._explain(flight.error, flight.step)
            raise explained from (None if explained is flight.error else flight.error)

    def _explain(self, error: BaseException, step: int) -> BaseException:
        """The one line for a failure of the storage; anything else is a defect and stays as it is."""
        if isinstance(error, UserError) or not isinstance(error, OSError | ValueError | RuntimeError):
            return error
        if isinstance(error, TimeoutError):
            reason = f"it took longer than {self._deadline:g} s (deadline_seconds), or another process died"
        else:
            reason = store.write_failure(error)
        return UserError(f"checkpoint {step} could not be written to {self.folder}: {reason}; {self._fallback()}")

    def _fallback(self) -> str:
        newest = self.latest_step()
        return "there is no earlier checkpoint" if newest is None else f"step {newest} and earlier ones are intact"

    def wait(self) -> None:
        """Returns when the save in flight has committed; raises a UserError when it failed or passed its deadline."""
        began = time.perf_counter()
        try:
            self._land()
        finally:
            self.blocked_seconds += time.perf_counter() - began

    def close(self) -> None:
        """Waits for the save in flight and lets go of Orbax. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._queue.put(None)
            if self._flight is None:  # else it hangs, and so would this
                self._thread.join()
                self._writer.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self.close()
            return
        try:  # the error that is already on its way is the one to show
            self.close()
        except UserError as second:
            log.error("%s", second)

    # Restoring

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint back into the structure and the shardings of `abstract_state`.

        Args:
          abstract_state: the state's tree with `jax.ShapeDtypeStruct` (or arrays) at its leaves; a leaf with a
            `.sharding` comes back as a `jax.Array` so laid out, on any mesh; one without as a numpy array.
          step: which; None is the newest, and if that is damaged the newest whole one, with a warning.
        Returns:
          (state, meta)
        Raises:
          UserError: no checkpoint, a damaged one, or arrays whose names, shapes or dtypes differ.
        """
        self.wait()
        processes.barrier("checkpoint restore")  # process 0 has applied retention: all see the same steps
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.folder}; start the run from its beginning, or give another folder")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.folder}; there are {_listed(steps)}")
        chosen = self._newest_whole(steps) if step is None else step
        folder = self.folder / str(chosen)
        if step is not None:
            faults = arrays.shared_damage(folder)
            if faults:
                good = [s for s in steps if s < step and not arrays.shared_damage(self.folder / str(s))]
                way = f"resume from step {good[-1]}, which is whole" if good else "no earlier one is whole"
                raise UserError(f"checkpoint {step} in {self.folder} is damaged: {faults[0]}; {way}")
        state = arrays.read_tree(folder, abstract_state)
        return state, store.read_meta(folder)

    def _newest_whole(self, steps: list[int]) -> int:
        damaged: list[int] = []
        for step in reversed(steps):
            faults = arrays.shared_damage(self.folder / str(step))
            if not faults:
                break
            log.warning("checkpoint %d in %s is damaged: %s", step, self.folder, faults[0])
            damaged.append(step)
        else:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged ({_listed(steps)}); restore a copy, or "
                f"start the run again in another folder"
            )
        if damaged:
            log.warning("falling back to checkpoint %d; the damaged are set aside as <step>%s", step, store.SET_ASIDE)
        for bad in damaged:
            self._names.pop(bad, None)
            if processes.is_first_process():
                store.set_aside(self.folder / str(bad))
        processes.barrier("damaged set aside")
        return step


@dataclasses.dataclass
class _Flight:
    """One save being written."""

    target: Any
    step: int
    kind: str
    name: str | None
    began: float
    done: threading.Event = dataclasses.field(default_factory=threading.Event)
    error: BaseException | None = None


def restore_params(folder: Any, abstract_params: Any = None, dtype: Any = None, prefix: str = "params") -> Any:
    """The parameters alone, of this or another run, from a full checkpoint or from the history.

    Args:
      folder: a step folder, or a stage's folder (its latest step).
      abstract_params: tree that gives structure and shardings, as in `Checkpointer.restore`; its dtypes win over the
        stored ones. None: a nested dict of numpy arrays.
      dtype: what floating-point leaves are cast to; None leaves them as they are asked for or stored.
      prefix: the field of the state to read.
    Raises:
      UserError: nothing there, damaged, or names or shapes differ.
    """
    step_folder = store.resolve(folder)
    faults = arrays.shared_damage(step_folder)
    if faults:
        raise UserError(f"checkpoint {step_folder} is damaged: {faults[0]}; use an earlier one")
    return arrays.read_subtree(step_folder, prefix, abstract_params, dtype)


def guard_fresh_start(folder: Any, overwrite: bool = False) -> None:
    """Refuses to begin at step 0 where a run has checkpoints already. All processes of a run call it.

    Args:
      overwrite: the user said so: the old checkpoints are set aside (not deleted) and the run may begin.
    Raises:
      UserError: there are checkpoints and `overwrite` is False.
    """
    root = store.as_path(folder)
    steps = store.committed_steps(root)
    if steps and not overwrite:
        raise UserError(
            f"{root} holds checkpoints up to step {steps[-1]}: resume that run, choose another folder with "
            f"--out, or give --overwrite to begin again"
        )
    processes.barrier("all have looked")
    if processes.is_first_process():
        for where in (root, root / store.HISTORY):
            for step in store.committed_steps(where):
                store.set_aside(where / str(step))
    processes.barrier("old run set aside")


def config_difference(old: Any, new: Any, at: str = "") -> list[str]:
    """Which fields of two resolved configurations (nested dicts) differ: `["optimizer.lr: 0.001 -> 0.01", ...]`."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys(), key=str):
            lines += config_difference(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{at}.{key}" if at else str(key))
        return lines
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return [
            line for i, pair in enumerate(zip(old, new, strict=True)) for line in config_difference(*pair, f"{at}[{i}]")
        ]
    return [] if old == new else [f"{at}: {old!r} -> {new!r}"]


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _listed(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[-5:]))
    return f"steps {shown}" if len(steps) <= 5 else f"{len(steps)} steps, the newest {shown}"
