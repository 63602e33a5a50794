"""One atomic checkpoint per saved step: arrays and metadata together, written by Orbax in the background.

    with Checkpointer(stage / "checkpoints", Retention(latest=2, keep_every=1000)) as checkpointer:
        state, meta = checkpointer.restore(abstract_state)
        checkpointer.save(step, state, meta)

Arrays are stored flat, by dotted name ("params.layers.attn.q.kernel"), so a checkpoint depends neither on the classes
of the state nor on the mesh or the number of processes that wrote it. See `checkpoint.store` for the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from easylm_jax.checkpoint import arrays, store
from easylm_jax.checkpoint.replica import Replica
from easylm_jax.checkpoint.store import Retention
from easylm_jax.runtime import processes
from models.durable import sync
from models.errors import UserError

log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores the state of one run in one folder.

    Opening removes incomplete checkpoints of a killed run. All processes of a run must make the same calls in the same
    order; only process 0 deletes and renames.

    Args:
      folder: the stage's `checkpoints` folder, visible to all processes; created if missing.
      asynchronous: `save` returns once the arrays are copied to the host; False waits for the commit.
      deadline_seconds: if a save takes longer, the next `save` or `wait` raises.
      replica: also keeps the newest states on the hosts' own disks, and restores them first.
      when_busy: what `save` does while the previous save is still being written: "wait" for it, so that every step is
        saved, or "skip" this save. At most one save is pending at any time, which bounds memory and disk.
    """

    def __init__(
        self,
        folder: Any,
        retention: Retention | None = None,
        *,
        asynchronous: bool = True,
        deadline_seconds: float = 600.0,
        when_busy: str = "wait",
        replica: Replica | None = None,
    ) -> None:
        if when_busy not in ("wait", "skip"):
            raise UserError(f'checkpoints: when_busy is {when_busy!r}; give "wait" or "skip"')
        self.folder = store.as_path(folder)
        self.retention = retention or Retention()
        self.blocked_seconds = 0.0
        self.write_seconds: float | None = None  # from the start of the latest save to its commit
        self._asynchronous = asynchronous
        self._deadline = deadline_seconds
        self._when_busy = when_busy
        self._replica = replica
        self.restored_from = ""  # in words, where it was not this folder
        self._pending: _PendingSave | None = None
        self._last: tuple[int, float] | None = None
        if processes.is_first_process():
            self._open()
        processes.barrier("checkpointer open")
        # Cached, so that retention need not list the folder: that is slow for hundreds of steps in a bucket.
        self._names: dict[int, str | None] = {}
        self._damaged: set[int] = set()  # neither counted nor deleted by retention; `restore` sets them aside
        for step in self.steps():
            try:
                manifest = store.read_manifest(self.folder / str(step))
            except UserError:
                self._damaged.add(step)
            else:
                self._names[step] = manifest.name
                self._last = (step, manifest.saved_at)
        self._writer = arrays.CheckpointWriter(deadline_seconds)
        self._queue: queue.SimpleQueue[_PendingSave | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run_thread, name="checkpoint", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot create the folder {self.folder}: {error.strerror}; choose another with --out"
            ) from error
        for where in (self.folder, self.folder / store.HISTORY):
            for name in store.clean(where):
                log.info("removed unfinished checkpoint %s", where / name)

    # Committed steps

    def steps(self) -> list[int]:
        """The committed steps, in ascending order."""
        return store.committed_steps(self.folder)

    def latest_step(self) -> int | None:
        steps = self.steps()
        return steps[-1] if steps else None

    def has_state(self) -> bool:
        """Whether there is anything to restore. All processes must call it."""
        found = self.latest_step() is not None
        return bool(self._replicas()) if self._replica is not None and not found else found

    @property
    def last_committed(self) -> tuple[int, float] | None:
        """(step, Unix time) of the newest commit; None before the first."""
        return self._last

    # Saving

    def save(self, step: int, state: Any, meta: dict[str, Any], name: str | None = None) -> bool:
        """Saves `state` (any pytree of arrays) and `meta` (JSON) as one checkpoint.

        Returns once the arrays may be donated or changed; the files are written in the background. If the step exists
        already, it is replaced; its old copy is kept until the new one is committed. Steps later than this one, left
        over if a run resumes from an earlier step, are set aside.

        Args:
          name: keeps this step forever and is shown by `easylm checkpoints list`; a named save is never skipped.
        Returns:
          False if the save was skipped because the previous one was still being written.
        Raises:
          UserError: the previous save failed (disk full, deadline exceeded, ...); this save is then not started, and
            may be tried again. Earlier checkpoints are untouched.
        """
        began = time.perf_counter()
        try:
            if self._when_busy == "skip" and name is None and processes.agree_any(self._is_busy()):
                return False
            self._finish_pending()
            processes.barrier(f"save of step {step}", self._deadline)  # names a process that does not come to save
            text = json.dumps(meta)
            leaves = arrays.named_leaves(state)
            if self.retention.history and step % self.retention.history == 0:
                # Before the full checkpoint: a run killed in between resumes from an earlier step and writes both.
                self._start(
                    self.folder / store.HISTORY / str(step),
                    step,
                    "params",
                    None,
                    arrays.params_in_bfloat16(leaves),
                    text,
                )
                self._finish_pending()
            if self._replica is not None:
                self._replica.save(step, leaves, meta)
            self._start(self.folder / str(step), step, "full", name, leaves, text)
            if not self._asynchronous:
                self._finish_pending()
            return True
        finally:
            self.blocked_seconds += time.perf_counter() - began

    def replicate(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Saves the state on the hosts' own disks alone, if there is a replica."""
        if self._replica is not None:
            began = time.perf_counter()
            self._replica.save(step, arrays.named_leaves(state), meta)
            self.blocked_seconds += time.perf_counter() - began

    def _is_busy(self) -> bool:
        return self._pending is not None and not self._pending.done.is_set()

    def _start(self, target: Any, step: int, kind: str, name: str | None, leaves: dict[str, Any], text: str) -> None:
        replaced = target.with_name(target.name + store.REPLACED)
        try:
            if processes.is_first_process() and store.is_committed(target):
                target.rename(replaced)
            began = time.monotonic()
            self._writer.start(target, leaves, json.loads(text), step=step, kind=kind, name=name)
        except (OSError, ValueError, RuntimeError) as error:
            self._clean_up(target)
            explained = self._explain(error, step)
            raise explained from (None if explained is error else error)
        self._pending = _PendingSave(target, step, kind, name, began)
        self._queue.put(self._pending)

    def _run_thread(self) -> None:
        """The background thread, one for all saves: starting a thread takes 20 ms while XLA occupies the cores."""
        while (save := self._queue.get()) is not None:
            self._commit(save)

    def _commit(self, save: _PendingSave) -> None:
        """Waits for a save to be committed, then applies retention; sets `save.error` and `save.done`."""
        try:
            self._writer.wait()
            if processes.is_first_process() and not store.is_remote(save.target):
                sync(save.target.parent)  # the rename that committed it, before older ones are deleted
            if save.kind == "full":
                self._last = (save.step, time.time())
                self._forget(save.step)
                self._names[save.step] = save.name
            if processes.is_first_process():
                store.remove_tree(save.target.with_name(save.target.name + store.REPLACED))
                if save.kind == "full":
                    self._apply_retention(save.step)
            if save.kind == "full":
                self.write_seconds = time.monotonic() - save.began
        except BaseException as error:  # reported by the training thread, in `_finish_pending`
            save.error = error
            self._clean_up(save.target)
        finally:
            save.done.set()

    def _apply_retention(self, step: int) -> None:
        for later in [s for s in (*self._names, *self._damaged) if s > step]:
            aside = self._remove(later, store.set_aside)
            log.warning("checkpoint %d is later than the step this run resumed from: moved to %s", later, aside)
        for old in self.retention.to_delete(self._names):
            self._remove(old, store.delete_step)

    def _remove(self, step: int, action: Callable[[Any], Any]) -> Any:
        """Deletes a step or sets it aside, unless that was done already."""
        self._forget(step)
        path = self.folder / str(step)
        return action(path) if store.is_committed(path) else None

    def _forget(self, step: int) -> None:
        self._names.pop(step, None)
        self._damaged.discard(step)

    def _clean_up(self, target: Any) -> None:
        """Cleans up after a failed save: deletes its files and restores the step that it was to replace."""
        if processes.is_first_process():
            for path in target.parent.glob(target.name + store.TEMPORARY + "*"):
                store.remove_tree(path)
            if store.is_remote(target) and not store.is_committed(target):  # in a bucket, files are written in place
                store.remove_tree(target)
            replaced = target.with_name(target.name + store.REPLACED)
            if replaced.exists() and not store.is_committed(target):
                replaced.rename(target)

    def _finish_pending(self) -> None:
        """Waits for the pending save, at most until its deadline, and raises its error if it failed."""
        save = self._pending
        if save is None:
            return
        left = self._deadline - (time.monotonic() - save.began)
        if not save.done.wait(max(left, 0.0)):
            raise processes.Temporary(
                f"checkpoint {save.step} is still not written after {self._deadline:g} s (deadline_seconds) in "
                f"{self.folder}: the storage or another process hangs; {self._fallback()}"
            )
        self._pending = None
        if save.error is not None:
            explained = self._explain(save.error, save.step)
            raise explained from (None if explained is save.error else save.error)

    def _explain(self, error: BaseException, step: int) -> BaseException:
        """A one-line UserError for a storage failure; other errors are bugs and are returned unchanged."""
        if isinstance(error, UserError) or not isinstance(error, OSError | ValueError | RuntimeError):
            return error
        if processes.peer_lost(error):  # nothing that the user has to fix
            return error
        kind: type[UserError] = UserError
        if isinstance(error, TimeoutError):
            kind = processes.Temporary
            reason = f"it took longer than {self._deadline:g} s (deadline_seconds), or another process died"
        else:
            reason = store.write_failure(error)
        return kind(f"checkpoint {step} could not be written to {self.folder}: {reason}; {self._fallback()}")

    def _fallback(self) -> str:
        newest = self.latest_step()
        return "there is no earlier checkpoint" if newest is None else f"step {newest} and earlier ones are intact"

    def wait(self) -> None:
        """Waits until the pending save is committed; raises a UserError if it failed or exceeded its deadline."""
        began = time.perf_counter()
        try:
            self._finish_pending()
        finally:
            self.blocked_seconds += time.perf_counter() - began

    def close(self) -> None:
        """Waits for the pending save and closes Orbax. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            if self._replica is not None:
                self._replica.close()
            self._queue.put(None)
            if self._pending is None:  # otherwise the save hangs, and joining the thread would hang too
                self._thread.join()
                self._writer.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self.close()
            return
        try:  # the exception that is being propagated is the one to report
            self.close()
        except UserError as second:
            log.error("%s", second)

    # Restoring

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint back into the structure and the shardings of `abstract_state`.

        Args:
          abstract_state: the state's tree with `jax.ShapeDtypeStruct` (or arrays) at its leaves; a leaf with a
            `.sharding` is restored as a `jax.Array` with that sharding, on any mesh; one without as a numpy array.
          step: which step; None restores the newest one that is not damaged, with a warning for each damaged one.
        Returns:
          (state, meta)
        Raises:
          UserError: there is no checkpoint, it is damaged, or names, shapes or dtypes of arrays differ.
        """
        self.wait()
        processes.barrier("checkpoint restore")  # process 0 has applied retention, so all processes see the same steps
        steps = self.steps()
        if step is None and self._replica is not None:
            found = self._from_replica(abstract_state, steps)
            if found is not None:
                return found
        if not steps:
            raise UserError(f"no checkpoint in {self.folder}; start the run from its beginning, or give another folder")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.folder}; it has {_steps_text(steps)}")
        chosen = self._newest_intact(steps) if step is None else step
        folder = self.folder / str(chosen)
        if step is not None:
            faults = arrays.shared_damage(folder)
            if faults:
                good = [s for s in steps if s < step and not arrays.shared_damage(self.folder / str(s))]
                advice = f"resume from step {good[-1]}, which is intact" if good else "no earlier one is intact"
                raise UserError(f"checkpoint {step} in {self.folder} is damaged: {faults[0]}; {advice}")
        state = arrays.read_tree(folder, abstract_state)
        return state, store.read_meta(folder)

    def _replicas(self) -> dict[int, dict[int, list[int]]]:
        """By step, where its parts are on the hosts' own disks; steps of which all are there."""
        assert self._replica is not None
        return self._replica.holders()

    def _from_replica(self, abstract_state: Any, steps: list[int]) -> tuple[Any, dict[str, Any]] | None:
        """The newest state that is whole on the hosts' own disks, unless the newest whole checkpoint is later."""
        assert self._replica is not None
        replicas = self._replicas()
        newest = steps[-1] if steps else -1
        if replicas and max(replicas) < newest:
            with contextlib.suppress(UserError):  # all are damaged
                newest = self._newest_intact(steps)
        for step in sorted((step for step in replicas if step >= newest), reverse=True):
            state, words, fault = None, "", None
            meta: dict[str, Any] = {}
            try:
                state, meta, words = self._replica.restore(abstract_state, step, replicas[step])
            except UserError as error:
                fault = str(error)
            if processes.agree_any(fault is not None):
                log.warning("replica of step %d: %s", step, fault or "another process could not restore it")
                continue
            self.restored_from = f"{words}; the newest checkpoint in {self.folder} is " + (
                f"of step {newest}" if newest >= 0 else "none"
            )
            return state, meta
        return None

    def _newest_intact(self, steps: list[int]) -> int:
        damaged: list[int] = []
        for step in reversed(steps):
            faults = arrays.shared_damage(self.folder / str(step))
            if not faults:
                break
            log.warning("checkpoint %d in %s is damaged: %s", step, self.folder, faults[0])
            damaged.append(step)
        else:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged ({_steps_text(steps)}); restore a backup, or "
                "start the run again in another folder"
            )
        if damaged:
            log.warning("using checkpoint %d instead; damaged ones are renamed to <step>%s", step, store.SET_ASIDE)
        for bad in damaged:
            self._forget(bad)
            if processes.is_first_process():
                store.set_aside(self.folder / str(bad))
        processes.barrier("damaged checkpoints set aside")
        return step


@dataclasses.dataclass
class _PendingSave:
    """A save that is being written in the background."""

    target: Any
    step: int
    kind: str
    name: str | None
    began: float
    done: threading.Event = dataclasses.field(default_factory=threading.Event)
    error: BaseException | None = None


def restore_params(folder: Any, abstract_params: Any = None, dtype: Any = None, prefix: str = "params") -> Any:
    """Restores only the parameters, of any run, from a full checkpoint or from the history.

    Args:
      folder: a step folder, or a stage's folder (its latest step).
      abstract_params: tree with the structure, shardings and dtypes to restore, as in `Checkpointer.restore`; arrays
        are cast to its dtypes. None returns a nested dict of numpy arrays.
      dtype: dtype to cast floating-point leaves to; None keeps that of `abstract_params`, or the stored one.
      prefix: the field of the state to read.
    Raises:
      UserError: there is no checkpoint, it is damaged, or names or shapes differ.
    """
    step_folder = store.resolve(folder)
    faults = arrays.shared_damage(step_folder)
    if faults:
        raise UserError(f"checkpoint {step_folder} is damaged: {faults[0]}; use an earlier one")
    return arrays.read_subtree(step_folder, prefix, abstract_params, dtype)


def _steps_text(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[-5:]))
    return f"steps {shown}" if len(steps) <= 5 else f"{len(steps)} steps, the newest {shown}"
