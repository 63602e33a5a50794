"""Metrics of a stage: one JSON object per line in `metrics.jsonl`; optionally TensorBoard and Weights & Biases.

JSON has no NaN or infinity, so they are written as the strings "NaN", "Infinity" and "-Infinity"; `read_metrics` turns
them back into floats. A resumed run may write a step a second time (if the run was killed before the checkpoint of that
step was committed): readers keep the last line of each step.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict

from easylm_jax.runtime.files import atomic_write
from models import reading
from models.errors import UserError

FILE_NAME = "metrics.jsonl"
_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_FSYNC_SECONDS = 1.0


class _Line(TypedDict):
    step: int
    time: NotRequired[float]


class Tracker(Protocol):
    """Another destination of the metrics, besides the file."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class MetricsWriter:
    """Appends one line per step to `folder/metrics.jsonl`, and logs to the configured trackers.

    Each line is flushed to the operating system before `write` returns, so a killed process loses none; fsync runs at
    most once a second and in `sync`, which a trainer calls before it saves a checkpoint. Only process 0 of a multi-host
    run writes; on the other processes every method does nothing.

    `tensorboard=True` also writes event files to `folder/tensorboard`; `wandb="project"` logs to that Weights & Biases
    project, and continues the same W&B run after a restart. Raises `UserError` if the required package is missing.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        tensorboard: bool = False,
        wandb: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        process_index: int | None = None,
    ):
        self.path = Path(folder) / FILE_NAME
        self._trackers: list[Tracker] = []
        self._file = None
        if process_index is None:
            import jax

            process_index = jax.process_index()
        if process_index != 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            self._trackers.append(_TensorBoard(self.path.parent / "tensorboard"))
        if wandb is not None:
            self._trackers.append(_WeightsAndBiases(self.path.parent, wandb, config))
        _repair_last_line(self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed in `close`
        self._synced = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends `{"step": step, **metrics, "time": seconds since 1970}`.

        Values may be numbers, strings, None, lists, or NumPy and JAX arrays (this copies them from the device).
        """
        if self._file is None:
            return
        line = {"step": int(step), **{name: _plain(value) for name, value in metrics.items()}}
        line.setdefault("time", round(time.time(), 3))
        self._file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
        self._file.flush()
        if time.monotonic() - self._synced >= _FSYNC_SECONDS:
            self.sync()
        for tracker in self._trackers:
            tracker.write(int(step), line)

    def sync(self) -> None:
        """Forces all lines written so far to the disk (fsync)."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Forces all lines to the disk and closes the trackers; a second call does nothing."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of `path` (the file, or the stage's folder), sorted by step; the last line written for each step.

    An incomplete last line, left by a killed process, is ignored. Raises `UserError` if the file is missing or any
    other line is invalid.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise UserError(f"no metrics at {path}; give a stage's folder, such as runs/quickstart/pretrain")
    lines = reading.read_lines(path, _Line, mend="delete that line to continue", last_may_be_cut=True)
    by_step = {line["step"]: _restore(line) for line in lines}
    return [by_step[step] for step in sorted(by_step)]


def last_line(path: str | os.PathLike) -> dict[str, Any] | None:
    """The last complete line in the file, or None; its `time` is when the run last made progress."""
    path = Path(path)
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 65536))
        for text in reversed(file.read().split(b"\n")):
            with contextlib.suppress(reading.Damaged):
                return _restore(reading.parse_json(text, _Line, path))
    return None


def _repair_last_line(path: Path) -> None:
    """Removes an incomplete last line, left by a killed process, so that the next line starts on its own."""
    if not path.is_file():
        return
    with open(path, "r+b") as file:
        text = file.read()
        tail = text[text.rfind(b"\n") + 1 :]
        if not tail:
            return
        try:
            reading.parse_json(tail, _Line, path)
            file.write(b"\n")
        except reading.Damaged:
            file.truncate(len(text) - len(tail))


def _plain(value: Any) -> Any:
    """Converts NumPy and JAX values to numbers and lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _restore(value: Any) -> Any:
    if isinstance(value, str):
        return _NONFINITE.get(value, value)
    if isinstance(value, dict):
        return {name: _restore(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_restore(item) for item in value]
    return value


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and name not in ("step", "time")
    }


class _TensorBoard:
    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                "TensorBoard logging needs tensorboardX, which is not installed; run pip install tensorboardX or turn "
                "tensorboard off"
            ) from None
        self._writer = SummaryWriter(str(folder))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in _scalars(metrics).items():
            self._writer.add_scalar(name, value, step, walltime=metrics["time"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path, project: str, config: Mapping[str, Any] | None):
        try:
            import wandb
        except ImportError:
            raise UserError(
                "Weights & Biases logging needs wandb, which is not installed; run pip install 'easylm_jax[wandb]' or "
                "turn it off"
            ) from None
        id_file = folder / "wandb_id.txt"  # a restart continues the same W&B run
        if not id_file.exists():
            with atomic_write(id_file) as file:
                file.write(uuid.uuid4().hex[:16].encode())
        self._run = wandb.init(
            project=project,
            id=reading.read_bytes(id_file, limit=100).decode("ascii", "replace").strip(),
            name="/".join(folder.parts[-2:]),
            resume="allow",
            dir=str(folder),
            config=dict(config or {}),
        )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._run.log(_scalars(metrics), step=step)

    def close(self) -> None:
        self._run.finish()
