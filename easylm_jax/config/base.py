"""The base class of all stages, and the stages that prepare data: `MakeData` and `Tokenizer`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from easylm_jax.config import fields
from easylm_jax.config.bounds import Count, Positive, Seed
from easylm_jax.config.data import DataSpec, Source
from easylm_jax.runtime.functions import load_function
from models.config import DecoderConfig
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Which steps are saved and which checkpoints are kept. The checkpoint of the last step always is."""

    every: Count | None = None
    """Every `every`-th step is saved, in the background. None saves each step, and fewer once the run has to wait for
    its saves, which a line says; this changes which steps are on the disk, and no result."""
    latest: Count = 2
    """How many of the newest checkpoints are kept."""
    keep_every: Count | None = None
    """Checkpoints of steps divisible by this are kept too; None keeps only the newest and the last."""
    history: Count | None = None
    """Every `history`-th step the parameters alone are kept for good, in bfloat16; None keeps no history."""
    when_busy: Literal["wait", "skip"] = "wait"
    """What happens when a save is due while the one before is still being written: "wait" for it, or "skip" this one.
    """
    deadline_seconds: Positive = 600.0
    """A save that takes longer is an error."""
    replica: str | None = fields.added_later(None)
    """A folder on each host's own disk, such as "~/easylm/replica", for a copy of the newest states, each part also on
    the next host; restored first. None keeps none (docs/checkpoints.md)."""
    replica_every: Count = fields.added_later(1)
    """With `replica`, every so many steps the state is copied there, also where no checkpoint is saved."""


@dataclasses.dataclass(frozen=True)
class Monitoring:
    """Where metrics go besides `metrics.jsonl`, how often progress is printed, and a watchdog for hanging runs."""

    tensorboard: bool = False
    """Whether metrics are written for TensorBoard too."""
    wandb: str | None = None
    """The project of Weights & Biases that metrics are sent to too; None for none. Needs the extra `wandb`."""
    heartbeat_seconds: Positive = 30.0
    """Seconds between two lines of progress, also while no step finishes."""
    watchdog: bool = True
    """Whether a run that makes no progress is ended with exit status 75, so that a supervisor can restart it."""


@dataclasses.dataclass(frozen=True)
class Validation:
    """Held-out data, evaluated with the stage's objective during training and at the end."""

    data: DataSpec
    """The held-out data, of the same kind as those of the stage."""
    every: Count | None = None
    """Steps between two evaluations; None evaluates at the end only."""


@dataclasses.dataclass(frozen=True)
class ModelUse:
    """A model that a stage reads, and what it asks of it (`checkpoint.preflight` checks it).

    `field` is the field that names the model, and `name` the model (None: fresh parameters). `kind` says which models
    fit: "language", "reward" (with a scalar head), or "any". `data` are the data sets whose tokens the model reads, and
    `tokens` the context that it needs at least because of `tokens_field`.
    """

    field: str
    name: str | None
    kind: Literal["language", "reward", "any"]
    data: tuple[DataSpec, ...] = ()
    tokens: int = 0
    tokens_field: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a recipe. Later stages refer to it by its name, which is also the name of its folder.

    Properties describe a stage to the runner, the planner and the report, so that these need no check of its class.
    `family` names the package that runs it: "data", "train", "rl", "synthesize" or "evaluate". `trains`: whether it
    produces a model. `generates`: whether a model generates responses on the recipe's `decode_mesh`.
    """

    family: ClassVar[str] = "data"
    trains: ClassVar[bool] = False
    generates: ClassVar[bool] = False

    name: str = dataclasses.field(kw_only=False)
    """The name of the stage, by which other stages and the command line refer to it; also that of its folder."""
    seed: Seed = 0
    """Seed of everything random in the stage: order of the data, dropout, new parameters, sampling."""

    def __post_init__(self):
        fields.check_types(self, self.name if isinstance(self.name, str) else "")

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the stages that must be done first."""
        return ()

    @property
    def function_arguments(self) -> tuple[object, ...]:
        """Arguments of the function that the stage calls; some may be names of data sets."""
        return ()

    @property
    def compiles(self) -> bool:
        """Whether the stage compiles programs for devices, which can be planned ahead of time."""
        return self.family != "data"

    @property
    def models(self) -> dict[str, str | None]:
        """The models that the stage runs besides the one that it trains, by role; None where a role is not used."""
        return {}

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        """All models that the stage reads, with what it asks of them."""
        return ()

    @property
    def derived_from(self) -> str | None:
        """The model that this stage's own is computed from without training, which has its tokenizer; None for stages
        that train, and for those that leave no model."""
        return None

    def derived(self, config: DecoderConfig) -> DecoderConfig:
        """The architecture of this stage's model, given that of `derived_from`."""
        return config

    @property
    def rows_per_update(self) -> int:
        """Rows that are sharded over the mesh at once."""
        return self.responses_per_step

    @property
    def responses_per_step(self) -> int:
        """Responses generated in one step; 0 for stages that generate none."""
        return 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step: of its batch, or of a rollout whose prompts and responses all have maximal length."""
        return 0

    @property
    def work(self) -> str:
        """The size of one step as text, for plans."""
        return ""

    # Fields that change how a stage runs but not its result. They may change when a run is resumed.
    NOT_HASHED = ("checkpoints", "monitoring", "examples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MakeData(Stage):
    """Writes JSONL files with a function of the recipe.

    Later stages read the files as `Source("stage:<name>/<file name>")`. The function may be in a module beside the
    recipe or in the recipe's own file.
    """

    function: str
    """The function as `"module:name"`. It is called as `function(seed, **arguments)` and returns `{file name:
    records}`."""
    arguments: Mapping[str, str | float | bool | None] | tuple[tuple[str, str | float | bool | None], ...] = ()
    """Its arguments by name, with plain values, as pairs or a dict."""

    def __post_init__(self):
        pairs = self.arguments.items() if isinstance(self.arguments, Mapping) else self.arguments
        object.__setattr__(self, "arguments", tuple((name, value) for name, value in pairs))
        super().__post_init__()

    @property
    def function_arguments(self) -> tuple[object, ...]:
        """The values of all arguments, with the function's defaults where it can be imported."""
        given = dict(self.arguments)
        try:
            parameters = inspect.signature(load_function(self.function)).parameters
        except UserError:  # reported when the stage runs
            return tuple(given.values())
        defaults = {name: one.default for name, one in parameters.items() if one.default is not one.empty}
        return tuple({**defaults, **given}.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer(Stage):
    """Trains a SentencePiece tokenizer on documents and conversations.

    Later stages use it as `tokenizer="stage:<name>"`.
    """

    sources: tuple[Source, ...]
    """The documents and conversations that the vocabulary is made from."""
    vocab_size: Count
    """Number of tokens, control tokens included."""
    symbols: tuple[str, ...] = ()
    """Control tokens of one's own; text is never encoded to them."""

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stages_of(self.sources)))


def stages_of(sources: tuple[Source, ...]) -> list[str]:
    """Names of the stages whose files these sources read."""
    return [s.path.removeprefix("stage:").partition("/")[0] for s in sources if s.path.startswith("stage:")]


def stages_of_data(data: Iterable[DataSpec]) -> list[str]:
    """Names of the stages whose files or tokenizer these data sets use."""
    data = list(data)
    stages = [d.tokenizer.removeprefix("stage:") for d in data if d.tokenizer.startswith("stage:")]
    return stages + [name for d in data for name in stages_of(d.sources)]


def models_of(*names: str | None) -> list[str]:
    """Those of `names` that are stages of the recipe and not `hf:` or `run:` models."""
    return [name for name in names if name is not None and not name.startswith(("hf:", "run:"))]
