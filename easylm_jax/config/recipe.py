"""A recipe: stages, and the layout of the devices that they run on."""

from __future__ import annotations

import dataclasses
import unicodedata

from easylm_jax.config.base import Stage
from easylm_jax.config.bounds import Positive
from models.errors import UserError

LONGEST_NAME = 128  # bytes


def check_name(what: str, name: str) -> None:
    """Raises `UserError` unless `name` can be the name of a folder: what stages and recipes are called."""
    try:
        encoded = name.encode() if isinstance(name, str) else b""
    except UnicodeEncodeError:
        encoded = b""
    faults = {
        "it must be text": not encoded and name != "",
        "it is empty": name == "",
        f"it has {len(encoded)} bytes, more than {LONGEST_NAME}": len(encoded) > LONGEST_NAME,
        "it begins with a dot or a space, or ends with a space": encoded[:1] in (b".", b" ") or encoded[-1:] == b" ",
        "it has a separator of paths (/ or \\)": b"/" in encoded or b"\\" in encoded,
        "it has control characters": any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in str(name)),
    }
    found = next((fault for fault, holds in faults.items() if holds), None)
    if found is not None:
        raise UserError(f"{what} name {str(name)[:60]!r} cannot be the name of a folder: {found}")


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
        check_name("recipe", self.name)
        if self.name == "cache":
            raise UserError(
                "recipe name 'cache' is that of the folder of packed data beside the recipes; choose another"
            )
        for stage in self.stages:
            check_name("stage", stage.name)
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
