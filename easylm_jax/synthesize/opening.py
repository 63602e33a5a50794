"""What every stage in which models write begins with: devices, speakers, and rows in batches that are files.

A batch is a pure function of its rows, the seed and the speakers, and a finished batch is a file, so that a stage that
was stopped goes on with the next one and leaves the files of one that never was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jax

from easylm_jax.config.dialogue_prompts import PROMPTS
from easylm_jax.config.workspace import Workspace
from easylm_jax.config.writing import Server, Writes
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from easylm_jax.rewards.moderator import Moderator, load_moderator
from easylm_jax.runtime import chunked, files, processes
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.runtime.monitor import counting
from easylm_jax.synthesize.batches import partial_folder
from easylm_jax.synthesize.speakers import ModelSpeaker, ServerSpeaker, Speaker
from models import reading
from models.errors import UserError

Row = dict[str, Any]
Make = Callable[[Sequence[Any], Any], list[Row]]  # (rows of a batch, progress) → the rows that are kept


class _Spent(TypedDict):
    """What lies beside a finished batch."""

    seconds: float


def rows_of(workspace: Workspace, source: Any, what: str) -> list[Row]:
    """The rows of a source; `UserError` if there are none or one is damaged."""
    found: list[Row] = []
    for record, _ in read_records(workspace.sources((source,))[0]):
        if isinstance(record, BadRecord):
            raise UserError(f"{what}: {record}")
        found.append(record)
    if not found:
        raise UserError(f"{what}: {source.path} has no rows")
    return found


@dataclasses.dataclass
class Opening:
    """A stage's devices and the folder of its finished batches.

    Attributes:
        stage, workspace: what is run.
        mesh: its devices.
        folder: of the batches and of journals.
        seconds: that all batches took, in all runs of the stage; set by `made`.
    """

    stage: Writes
    workspace: Workspace
    mesh: jax.sharding.Mesh
    folder: Path
    seconds: float = 0.0

    def speaker(
        self, init: str | None, server: Server | None, name: str, *, template: str | None = None, reuse: bool = True
    ) -> Speaker:
        """The model or the server, of which one is given; `name` tells the journals of a stage apart."""
        stage = self.stage
        if server is not None:
            if jax.process_count() > 1:
                raise UserError(f"stage {stage.name}: a server is asked by one process; run it on one host")
            return ServerSpeaker(server, stage.slots, stage.seed, self.folder / f"asked-{name}.jsonl")
        assert init is not None  # checked by the stage's dataclass
        model = self.workspace.model(init)
        return ModelSpeaker(model, init, template or stage.chat_template, stage.slots, stage.seed, self.mesh, reuse)

    def moderator(self, name: str | None, prompts: str) -> Moderator | None:
        """The moderator of a stage, which reads the text of the prompts `prompts` if these have one."""
        if name is None:
            return None
        moderator = load_moderator(self.workspace.model(name).removeprefix("run:"), mesh=self.mesh)
        moderator.template = PROMPTS[prompts].moderator or moderator.template
        return moderator

    def made(self, rows: Sequence[Any], unit: str, make: Make, part: str = "") -> list[Row]:
        """What `make` makes of the rows, `stage.batch` at a time; the batches that are on the disk are read."""
        stage = self.stage
        chunks = chunked.chunks(len(rows), stage.batch)
        paths = [self.folder / f"{part}{number:06d}.jsonl" for number in range(len(chunks))]
        with counting(stage.name, len(rows), unit) as progress, jax.set_mesh(self.mesh):
            for path, chunk in zip(paths, chunks, strict=True):
                if not path.is_file():
                    began = time.monotonic()
                    batch = make(rows[chunk], progress)
                    if processes.is_first_process():
                        files.write_json(path.with_suffix(".json"), {"seconds": time.monotonic() - began})
                        files.write_lines(path, batch)
                processes.barrier(f"{stage.name} {path.stem}")
                progress.update(chunk.stop, {})
        mend = "delete it and run the stage again, which repeats this batch alone"
        for path in paths:
            self.seconds += reading.read_json(path.with_suffix(".json"), _Spent, mend=mend)["seconds"]
        return list(itertools.chain.from_iterable(reading.read_lines(path, mend=mend) for path in paths))

    @property
    def device_hours(self) -> float:
        """Hours of the batches times devices."""
        return self.seconds / 3600 * self.mesh.size


@contextlib.contextmanager
def opened(stage: Writes, workspace: Workspace) -> Iterator[Opening]:
    """The opening of a stage; after it, all processes wait until the first has written the files."""
    yield Opening(stage, workspace, make_mesh(workspace.recipe.mesh), partial_folder(stage, workspace, "parts"))
    processes.barrier(f"{stage.name} written")


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one piece."""
    with files.atomic_write(path) as file:
        file.write(text.encode())
