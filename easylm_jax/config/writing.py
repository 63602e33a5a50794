"""What stages share in which models or servers write: who writes, how many answers are in flight, the prompts."""

from __future__ import annotations

import dataclasses
import urllib.parse
from typing import ClassVar, Literal

from easylm_jax.config import fields
from easylm_jax.config.base import ModelUse, Stage, models_of, stages_of
from easylm_jax.config.bounds import Count, NonNegative, Positive
from easylm_jax.config.data import Source
from models.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A server that speaks OpenAI's chat completions (`decode.endpoint`)."""

    url: str
    """Its address up to and with `/v1`."""
    model: str
    """The model that it is asked for."""
    key: str | None = None
    """The environment variable that holds the key; None for a server without keys."""
    concurrency: Count = 8
    """Requests at once, at most."""
    timeout: Positive = 120.0
    """Seconds for one attempt, from connecting to the last byte."""
    attempts: Count = 6
    """Attempts at one request, at most."""
    per_minute: Positive | None = None
    """Requests in a minute, at most; None for no limit of ours."""
    price_in: NonNegative = 0.0
    """Price of a million prompt tokens, for the ledger."""
    price_out: NonNegative = 0.0
    """Price of a million new tokens, for the ledger."""

    def __post_init__(self):
        fields.check_types(self, "server")
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"server: {self.url!r} is no http address; give one such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise UserError("server: the address holds a name, a password or a query; keys belong in the environment")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writes(Stage):
    """A stage in which models write: the base of `Speaks` and of `Respond`."""

    family: ClassVar[str] = "synthesize"
    generates: ClassVar[bool] = True

    chat_template: str | None = None
    """Chat template of the models; None: their own."""
    slots: Count = 64
    """Conversations or questions in flight, each with its keys and values in memory."""
    batch: Count = 256
    """Rows of a file of the stage's work: what a stopped stage repeats at most."""
    limit: Count | None = None
    """Rows in all; None for all of them."""

    @property
    def compiles(self) -> bool:
        return False

    @property
    def _sources(self) -> tuple[Source, ...]:
        return ()

    @property
    def _inits(self) -> tuple[str | None, ...]:
        """The models that write."""
        return ()

    @property
    def _others(self) -> tuple[str | None, ...]:
        """Models that only read."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*stages_of(self._sources), *models_of(*self._inits, *self._others)]))

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        names = dict.fromkeys((*self._inits, *self._others))
        return tuple(ModelUse("init", name, "language") for name in names if name is not None)

    @property
    def models(self) -> dict[str, str | None]:
        return {"model": next(iter(self._inits), None)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speaks(Writes):
    """A stage in which one model writes, by turns or in answer to questions: the base of `Dialogues` and others."""

    init: str | None = None
    """The model that writes: a stage, `hf:<name>` or `run:<folder>`; None where a server does."""
    server: Server | None = None
    """The server that writes, where no model does."""
    prompts: Literal["full", "short"] = "full"
    """The prompts, by name (`config/dialogue_prompts.py`)."""

    def __post_init__(self):
        super().__post_init__()
        if (self.init is None) == (self.server is None):
            raise UserError(f"stage {self.name}: a model (init) or a server writes; give one of the two")

    @property
    def _inits(self) -> tuple[str | None, ...]:
        return (self.init,)
