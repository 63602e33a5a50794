"""The stage that compares models by their held-out loss."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from easylm_jax.config.base import ModelUse, Stage, models_of, stages_of_data
from easylm_jax.config.bounds import Count
from easylm_jax.config.data import DataSpec
from easylm_jax.config.evaluate import Entry, check_entries
from models.config import Compute
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A held-out set: the name of its column, and its data."""

    name: str
    """The name of the column."""
    data: DataSpec
    """Text or conversations; the loss is that of their trained tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Losses(Stage):
    """The held-out loss of models on each of several sets, in nats per token, with its standard error over rows.

    Writes `losses.json` in its own folder and `table.json` in the recipe's. Differences are paired row by row.
    """

    family: ClassVar[str] = "evaluate"

    title: str
    """The heading of the table."""
    sets: tuple[HeldOut, ...]
    """The columns."""
    entries: tuple[Entry, ...]
    """The rows: methods and their models, one for each seed."""
    batch: Count = 16
    """Rows in one forward pass."""
    compute: Compute = Compute()
    """How the models are computed."""

    def __post_init__(self):
        super().__post_init__()
        if not (self.sets and self.entries):
            raise UserError(f"stage {self.name}: give at least one set and one entry")
        check_entries(self.name, self.entries)
        for held_out in self.sets:
            if held_out.data.kind not in ("text", "chat", "tokens"):
                kind = held_out.data.kind
                raise UserError(f"stage {self.name}: set {held_out.name} is of kind {kind!r}; give text or chat")

    @property
    def compiles(self) -> bool:
        return False

    @property
    def names(self) -> tuple[str, ...]:
        """The models of all entries, each once."""
        return tuple(dict.fromkeys(name for entry in self.entries for name in entry.stages))

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*stages_of_data(s.data for s in self.sets), *models_of(*self.names)]))

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        data = tuple(held_out.data for held_out in self.sets)
        longest = max(spec.sequence_length for spec in data)
        asked = (data, longest, "sets.data.sequence_length")
        return tuple(ModelUse("entries", name, "language", *asked) for name in self.names)
