"""A curation command whose decisions are made by datatrove's executors: local processes, SLURM jobs or Ray tasks.

    from datatrove.executor import RayPipelineExecutor
    from easylm_jax.data.curation.dedup import dedup
    from easylm_jax.data.curation.scale import on

    dedup(["rows/*.jsonl"], Path("kept"), decide=on(lambda steps: RayPipelineExecutor(steps, tasks=64)))

The command itself is the same: its key, its blocks, and what is done with the decisions. The executor's tasks make the
decisions of the blocks, which is nearly all of the work, and leave them as files that the command then reads; so the
kept rows are those of one machine, byte by byte. All machines need the same folders. Needs the extra `scale`.

With SLURM the jobs are only queued when the executor returns. The command then says how many blocks are left, and is
run again when the jobs have ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from easylm_jax.data.curation.job import DecideBlocks, Job, save_part
from easylm_jax.data.curation.rows import blocks
from easylm_jax.runtime.functions import resolve
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Decisions:
    """A step of a datatrove pipeline: task `rank` of `world_size` decides on every `world_size`-th block.

    Attributes:
        files: all rows, in reading order.
        work: the folder of the decisions.
        make, arguments: as `Job.decide` takes them.
    """

    files: tuple[Path, ...]
    work: Path
    make: str
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        decide = None
        for block in blocks(self.files):
            path = self.work / f"{block.number:06d}.npz"
            if block.number % world_size == rank and not path.is_file():
                decide = resolve(self.make)(**dict(self.arguments)) if decide is None else decide
                save_part(path, block, decide(block))
        return data


def on(executor: Callable[[list[Any]], Any], wait: bool = True) -> DecideBlocks:
    """A value for the argument `decide` of a curation command.

    Args:
        executor: (steps) → an executor of datatrove with a method `run`.
        wait: whether `run` returns when all tasks have ended; False for SLURM.

    Raises:
        UserError: when the command runs: decisions are missing after `run`.
    """

    def decide(job: Job, make: str, arguments: Mapping[str, Any]) -> int:
        files = tuple(path.absolute() for path in job.files)
        count = sum(1 for _ in blocks(job.files))
        left = [number for number in range(count) if not job.part(number).is_file()]
        if left:
            executor([Decisions(files, job.work.absolute(), make, tuple(arguments.items()))]).run()
            left = [number for number in left if not job.part(number).is_file()]
        if left:
            mend = "the executor's log says why" if wait else "run the command again when the jobs have ended"
            raise UserError(f"{job.command}: {len(left)} of {count} blocks have no decisions; {mend}")
        return count

    return decide
