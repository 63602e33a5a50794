"""What every stage has, and the stages that make no model: data written by a function, a vocabulary."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from easylm_jax.config import fields
from easylm_jax.config.data import DataSpec, Source
from easylm_jax.runtime.functions import load_function
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Which steps are saved and which stay.

    Every `every`-th step is saved, in the background. The newest `latest` stay, those divisible by `keep_every`, and
    the last step of the stage. Every `history`-th step the parameters alone are kept too, in bfloat16. When a step ends
    while the previous save is still being written, `when_busy` says whether to "wait" or to "skip" that one save.
    """

    every: int = 1
    latest: int = 2
    keep_every: int | None = None
    history: int | None = None
    when_busy: Literal["wait", "skip"] = "wait"
    deadline_seconds: float = 600.0


@dataclasses.dataclass(frozen=True)
class Monitoring:
    """Where metrics go besides `metrics.jsonl`, how often a heartbeat is printed, and whether hangs are ended."""

    tensorboard: bool = False
    wandb: str | None = None
    heartbeat_seconds: float = 30.0
    watchdog: bool = True


@dataclasses.dataclass(frozen=True)
class Validation:
    """Held-out data, scored with the stage's own objective every `every` steps and at the end."""

    data: DataSpec
    every: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a recipe. Its name is the name of its folder, and how later stages refer to it.

    What others ask a kind of stage is answered here, and by the kinds that differ: nobody asks for its class. `family`
    says which of the project's rooms runs it: "data", "train", "rl", "synthesize" or "evaluate". `trains`: whether it
    leaves a model; `generates`: whether a model generates on the recipe's `decode_mesh`.
    """

    family: ClassVar[str] = "data"
    trains: ClassVar[bool] = False
    generates: ClassVar[bool] = False

    name: str = dataclasses.field(kw_only=False)
    seed: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the stages that must be done before."""
        return ()

    @property
    def function_arguments(self) -> tuple[object, ...]:
        """What a function of the recipe's that it calls is given; such values may name data sets."""
        return ()

    @property
    def compiles(self) -> bool:
        """Whether it runs programs on devices, so that it can be planned."""
        return self.family != "data"

    @property
    def models(self) -> dict[str, str | None]:
        """The models that it runs besides the one that it trains, by role; None for a role that nobody has."""
        return {}

    @property
    def rows_per_update(self) -> int:
        """Rows that are split over the mesh at once."""
        return self.responses_per_step

    @property
    def responses_per_step(self) -> int:
        """Responses that are generated in one step; 0 where none are."""
        return 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step: of its batch, or of the longest prompts and responses of a rollout."""
        return 0

    @property
    def work(self) -> str:
        """The size of what one step goes through, in words."""
        return ""

    # Fields that change how a stage runs but not what comes out: they may differ when a run goes on.
    NOT_HASHED = ("checkpoints", "monitoring", "examples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MakeData(Stage):
    """Writes JSONL files with a function of the recipe's: `"module:name"`, called as `function(seed, **arguments)`.

    It returns `{file name: records}`. Sources of later stages read them as `Source("stage:<name>/<file name>")`.
    `arguments` are pairs of a name and a plain value; a dict of them will do.
    """

    function: str
    arguments: Mapping[str, str | float | bool | None] | tuple[tuple[str, str | float | bool | None], ...] = ()

    def __post_init__(self):
        pairs = self.arguments.items() if isinstance(self.arguments, Mapping) else self.arguments
        object.__setattr__(self, "arguments", tuple((name, value) for name, value in pairs))
        fields.check_types(self, self.name)

    @property
    def function_arguments(self) -> tuple[object, ...]:
        """The arguments, the function's own defaults among them where it can be imported."""
        given = dict(self.arguments)
        try:
            parameters = inspect.signature(load_function(self.function)).parameters
        except UserError:  # running the stage tells what is wrong with it
            return tuple(given.values())
        defaults = {name: one.default for name, one in parameters.items() if one.default is not one.empty}
        return tuple({**defaults, **given}.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer(Stage):
    """Trains a SentencePiece vocabulary on documents and conversations.

    Data of later stages name it as `tokenizer="stage:<name>"`. `symbols` are control tokens that never come from text.
    """

    sources: tuple[Source, ...]
    vocab_size: int
    symbols: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stages_of(self.sources)))


def stages_of(sources: tuple[Source, ...]) -> list[str]:
    """Stages whose files these sources read."""
    return [s.path.removeprefix("stage:").partition("/")[0] for s in sources if s.path.startswith("stage:")]


def stages_of_data(data: Iterable[DataSpec]) -> list[str]:
    """Stages whose files or vocabulary these data read."""
    data = list(data)
    stages = [d.tokenizer.removeprefix("stage:") for d in data if d.tokenizer.startswith("stage:")]
    return stages + [name for d in data for name in stages_of(d.sources)]


def models_of(*names: str | None) -> list[str]:
    """Those of the models named that are stages of the recipe."""
    return [name for name in names if name is not None and not name.startswith(("hf:", "run:"))]
