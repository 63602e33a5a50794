"""The worker of benchmarks/checkpoint.py: bursts of training, with a checkpoint every step or with none."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from common import SIZES, serve, take_stdout

CHANNEL = take_stdout()

import jax  # noqa: E402 - after standard output is redirected

from easylm_jax.checkpoint import checkpointer  # noqa: E402
from easylm_jax.config import (  # noqa: E402
    Checkpoints,
    DataSpec,
    DecoderConfig,
    Monitoring,
    OptimizerConfig,
    Recipe,
    Source,
    Tokenizer,
)
from easylm_jax.experiment import Experiment  # noqa: E402
from easylm_jax.runtime.host_memory import keep_freed_memory  # noqa: E402
from easylm_jax.runtime.monitor.metrics import read_metrics  # noqa: E402
from easylm_jax.train import loop  # noqa: E402
from recipes import quickstart  # noqa: E402

TEXT = "a calm grey river runs past seven old mills while two small boats drift by and nobody counts the hours"
NEVER = 10**9
WARM_UP = 2  # warm-up steps at the start of a burst


@dataclasses.dataclass(frozen=True)
class Save:
    """One call of `Checkpointer.save`: its start (Unix time), and the total blocked time before it, in seconds."""

    step: int
    began: float
    blocked: float


class RecordingCheckpointer(checkpointer.Checkpointer):
    """The trainer's checkpointer, which also records when it was called and when checkpoints were committed."""

    saves: list[Save] = []
    commits: dict[int, float] = {}
    skipped = 0

    def save(self, step: int, state: Any, meta: dict[str, Any], name: str | None = None) -> bool:
        """Saves; `meta` has the time that earlier checkpoints have blocked the loop."""
        self.saves.append(Save(step, time.time(), meta["clocks"]["seconds"]["checkpoint"]))
        made = super().save(step, state, meta, name)
        type(self).skipped += not made
        self._note()
        return made

    def wait(self) -> None:
        super().wait()
        self._note()

    def _note(self) -> None:
        if self.last_committed is not None:
            step, at = self.last_committed
            self.commits[step] = at


class Training:
    """A stage with the quickstart's settings on a small generated cache."""

    def __init__(self, size: str, folder: Path):
        self.folder = folder
        documents = folder / "documents.jsonl"
        words = TEXT.split()
        texts = (" ".join(words[(i * 7 + j * j) % len(words)] for j in range(20 + i % 60)) for i in range(4000))
        documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        stage = quickstart.recipe.stage("pretrain")
        if size != "quickstart":
            config = DecoderConfig(family="olmo2", context=quickstart.SEQUENCE, qk_norm=True, **SIZES[size])
            stage = dataclasses.replace(stage, model=config, batch=2 if size == "tiny" else stage.batch)
        source = Source(str(documents))
        tokenizer = Tokenizer("tokenizer", sources=(source,), vocab_size=300)
        data = DataSpec((source,), "stage:tokenizer", quickstart.SEQUENCE)
        self.stage = dataclasses.replace(
            stage, data=data, validation=None, optimizer=OptimizerConfig(1e-4),  # the schedule needs more steps
            monitoring=Monitoring(watchdog=False, heartbeat_seconds=60),
        )  # fmt: skip
        self.experiment = Experiment(Recipe("benchmark", stages=(tokenizer, self.stage)), folder / "runs")
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        loop.Checkpointer = RecordingCheckpointer
        self.experiment.run(tokenizer)

    def burst(self, saving: bool, steps: int) -> dict[str, Any]:
        """Trains `steps` steps from the start; returns the seconds of each step and of each save."""
        RecordingCheckpointer.saves.clear()
        RecordingCheckpointer.commits.clear()
        RecordingCheckpointer.skipped = 0
        checkpoints = Checkpoints(every=1) if saving else Checkpoints(every=NEVER)
        stage = dataclasses.replace(self.stage, steps=steps, checkpoints=checkpoints)
        folder = self.experiment.folder(stage.name)
        shutil.rmtree(folder, ignore_errors=True)
        cpu, began = time.process_time(), time.perf_counter()
        self.experiment.run(stage)
        whole = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        times = [line["time"] for line in read_metrics(folder)]
        each = [after - before for before, after in zip(times, times[1:], strict=False)][WARM_UP:]
        saves, commits = RecordingCheckpointer.saves, RecordingCheckpointer.commits
        blocked = [after.blocked - before.blocked for before, after in zip(saves, saves[1:], strict=False)][WARM_UP:]
        writes = [commits[save.step] - save.began for save in saves if save.step in commits]
        return {
            **whole, "step_seconds": each, "blocked_seconds": blocked if saving else [], "write_seconds": writes,
            "skipped": RecordingCheckpointer.skipped, "checkpoint_bytes": _newest_bytes(folder / "checkpoints"),
        }  # fmt: skip


def _newest_bytes(folder: Path) -> int:
    """Bytes of the newest checkpoint."""
    newest = max((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    return sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    keep_freed_memory()  # as `easylm run` does
    began = time.perf_counter()
    training = Training(spec["size"], Path(spec["folder"]))
    training.burst(saving=True, steps=WARM_UP + 2)  # compiles, and fills the cache of compiled programs
    stage = training.stage
    about = {
        "jax": jax.__version__, "batch": stage.batch, "length": quickstart.SEQUENCE,
        "model": {name: getattr(stage.model, name) for name in ("layers", "width", "ffn", "heads", "vocab")},
        "checkpoints": dataclasses.asdict(stage.checkpoints), "ready_seconds": time.perf_counter() - began,
        "watch": str(training.experiment.folder(stage.name) / "checkpoints"),
    }  # fmt: skip
    serve(about, {"burst": training.burst}, CHANNEL)


if __name__ == "__main__":
    main()
