"""Checks before a run starts or resumes: existing checkpoints are not overwritten, and settings have not changed."""

from __future__ import annotations

from typing import Any

from easylm_jax.checkpoint import store
from easylm_jax.runtime import processes
from models.errors import UserError


def guard_fresh_start(folder: Any, overwrite: bool = False) -> None:
    """Raises if a new run would start in a folder that already has checkpoints. All processes must call it.

    Args:
      overwrite: set the old checkpoints aside (they are not deleted) and let the run start.
    Raises:
      UserError: there are checkpoints and `overwrite` is False.
    """
    root = store.as_path(folder)
    steps = store.committed_steps(root)
    if steps and not overwrite:
        raise UserError(
            f"{root} holds checkpoints up to step {steps[-1]}: resume that run, choose another folder with "
            f"--out, or give --overwrite to start again"
        )
    processes.barrier("fresh start checked")
    if processes.is_first_process():
        for where in (root, root / store.HISTORY):
            for step in store.committed_steps(where):
                store.set_aside(where / str(step))
    processes.barrier("old checkpoints set aside")


def config_difference(old: Any, new: Any, at: str = "") -> list[str]:
    """The fields that differ between two resolved configurations: `["optimizer.lr: 0.001 -> 0.01", ...]`."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys(), key=str):
            lines += config_difference(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{at}.{key}" if at else str(key))
        return lines
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return [
            line for i, pair in enumerate(zip(old, new, strict=True)) for line in config_difference(*pair, f"{at}[{i}]")
        ]
    return [] if old == new else [f"{at}: {_shown(old)} -> {_shown(new)}"]


def _shown(value: Any, length: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()
