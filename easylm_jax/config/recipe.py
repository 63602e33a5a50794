"""A recipe: stages, and the layout of the devices that they run on."""

from __future__ import annotations

import dataclasses

from easylm_jax.config.base import Stage
from easylm_jax.config.bounds import Positive
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A name, the layout of the devices, and stages, which run in the order of their needs."""

    name: str
    """The name of the recipe, and of its folder below `runs`."""
    stages: tuple[Stage, ...]
    """What is done. Stages run in the order of their needs, not in the order in which they are written."""
    mesh: str = "fsdp=-1"
    """The layout of the devices: axes and their sizes, such as "fsdp=-1,tp=4"; -1 takes all devices that are left
    (docs/layouts.md)."""
    decode_mesh: str | None = None
    """The layout for generating responses; None is that of `mesh`."""
    pod: str | None = None
    """The TPU slice that batch sizes and meshes were chosen for, such as "v5p-64"; `easylm plan` compiles for it."""
    length: Positive | None = None
    """How long all stages take together, in runs of the probe of `runtime/monitor/duration.py`; a run prints an
    estimate from it at its start. None prints none."""

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.name or "/" in self.name:
            raise UserError(f"recipe name {self.name!r} must be usable as the name of a folder")
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"recipe {self.name}: two stages are called {name!r}")
        for stage in self.stages:
            for need in stage.needs:
                if need not in names:
                    raise UserError(
                        f"recipe {self.name}: stage {stage.name} starts from {need!r}, which is no stage of it "
                        f"({', '.join(names)}); another model is written hf:<name> or run:<folder>"
                    )

    def stage(self, name: str) -> Stage:
        """The stage called `name`; `UserError` when there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"recipe {self.name} has no stage {name!r}; it has {', '.join(s.name for s in self.stages)}")
