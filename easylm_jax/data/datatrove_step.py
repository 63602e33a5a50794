"""A cache built with datatrove's executors, for corpora that outgrow one machine: processes, SLURM jobs or Ray tasks.

    from datatrove.executor import SlurmPipelineExecutor
    from easylm_jax.data.datatrove_step import CachePart

    SlurmPipelineExecutor([CachePart(spec, "/shared/cache")], tasks=512, time="12:00:00", partition="cpu").run()
    # then, once: easylm data merge /shared/cache

Each task builds one part (`parts.build_part`); a task that failed is run again by the executor. Needs the extra
`scale`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from easylm_jax.config.data import DataSpec
from easylm_jax.data import parts
from easylm_jax.data.cache import Cache
from easylm_jax.data.fill import Share
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class CachePart:
    """A step of a datatrove pipeline: task `rank` of `world_size` builds that part of the cache of `spec`.

    Documents of earlier steps are not read; the sources of the spec are what is encoded.
    """

    spec: DataSpec
    folder: str

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        parts.build_part(self.spec, self.folder, Share(rank, world_size))
        return data


def build_with_processes(spec: DataSpec, folder: str, tasks: int, workers: int = -1, logs: str | None = None) -> Cache:
    """The cache of a spec, built as `tasks` parts with datatrove's local executor, `workers` at a time (−1: all at
    once), and merged.

    Raises:
        UserError: datatrove is not installed, or a part could not be built.
    """
    try:
        from datatrove.executor import LocalPipelineExecutor
    except ImportError as error:
        raise UserError(f"data: this needs the extra `scale`: pip install 'easylm_jax[scale]' ({error})") from None
    LocalPipelineExecutor([CachePart(spec, folder)], tasks=tasks, workers=workers, logging_dir=logs).run()
    return parts.merge(folder, spec)[0]
