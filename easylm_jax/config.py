"""What a recipe is made of: frozen dataclasses that a Python file fills in and a command line changes field by field.

    recipe = Recipe("my-run", stages=(
        Tokenizer("tokenizer", sources=(Source("data/*.jsonl"),), vocab_size=4096),
        Pretrain("pretrain", model=DecoderConfig(...), data=DataSpec(...), batch=32, steps=1000,
                 optimizer=OptimizerConfig("3e-4 cosine to 10% warmup 100 steps")),
        SFT("sft", init="pretrain", data=DataSpec(...), batch=16, epochs=2,
            optimizer=OptimizerConfig("2e-5 linear to 0")),
    ))

A stage is data and one method, `objective`: a new kind of training is a class here and a pure function in
`easylm_jax.objectives`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from easylm_jax import fields
from easylm_jax.data.spec import DataSpec, Source
from easylm_jax.lora import LoraConfig
from easylm_jax.optimizer import OptimizerConfig, SkipStep
from easylm_jax.steps import Objective
from models.config import Compute, DecoderConfig, RopeScaling
from models.decoder import Decoder
from models.errors import UserError

__all__ = [
    "DPO",
    "SFT",
    "Checkpoints",
    "Compute",
    "DataSpec",
    "DecoderConfig",
    "LoraConfig",
    "MakeData",
    "Monitoring",
    "OptimizerConfig",
    "Pretrain",
    "Recipe",
    "RewardModel",
    "RopeScaling",
    "SkipStep",
    "Source",
    "Stage",
    "Tokenizer",
    "Train",
    "Validation",
]


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
    """One step of a recipe. Its name is the name of its folder, and how later stages refer to it."""

    name: str = dataclasses.field(kw_only=False)
    seed: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the stages that must be done before."""
        return ()

    # Fields that change how a stage runs but not what comes out: they may differ when a run goes on.
    FREE = ("checkpoints", "monitoring")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MakeData(Stage):
    """Writes JSONL files with a function of the recipe's: `"module:name"`, called as `function(seed)`.

    It returns `{file name: records}`. Sources of later stages read them as `Source("stage:<name>/<file name>")`.
    """

    function: str


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
        return tuple(dict.fromkeys(_stages_of(self.sources)))


def _stages_of(sources: tuple[Source, ...]) -> list[str]:
    """Stages whose files these sources read."""
    return [s.path.removeprefix("stage:").partition("/")[0] for s in sources if s.path.startswith("stage:")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """Training on data that is there already: what pre-training and fine-tuning share.

    Exactly one of `model` (a preset's name or a shape: fresh parameters) and `init` (parameters to start from) is
    given. `init` is a stage of the recipe, `hf:<folder or hub name>`, or `run:<stage folder>`; with `keep_moments` the
    optimiser's moments come along (OLMo 2's second stage, spec olmo §10.2).

    `batch` counts rows of the packed cache for one update, `accumulate` the micro-batches it is cut into. It ends after
    `steps` or `epochs`, whichever is given, or comes first. `lora` trains an adapter and leaves the parameters as they
    were.
    """

    scalar_head: ClassVar[bool] = False

    model: str | DecoderConfig | None = None
    init: str | None = None
    keep_moments: bool = False
    data: DataSpec
    validation: Validation | None = None
    batch: int
    accumulate: int = 1
    steps: int | None = None
    epochs: float | None = None
    optimizer: OptimizerConfig
    dropout: float = 0.0
    lora: LoraConfig | None = None
    compute: Compute = Compute()
    checkpoints: Checkpoints = Checkpoints()
    monitoring: Monitoring = Monitoring()

    def __post_init__(self):
        fields.check_types(self, self.name)
        if (self.model is None) == (self.init is None):
            raise UserError(f"stage {self.name}: give either model (fresh parameters) or init (where to start from)")
        if self.steps is None and self.epochs is None:
            raise UserError(f"stage {self.name}: give steps or epochs (or both: it ends with the first)")
        if self.keep_moments and self.lora:
            raise UserError(f"stage {self.name}: keep_moments needs the same trained parameters, which lora changes")
        for name in ("batch", "accumulate", "steps", "epochs"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"stage {self.name}: {name} must be above 0, not {value}")

    @property
    def needs(self) -> tuple[str, ...]:
        data = [self.data] + ([self.validation.data] if self.validation else [])
        stages = [d.tokenizer.removeprefix("stage:") for d in data if d.tokenizer.startswith("stage:")]
        stages += [name for d in data for name in _stages_of(d.sources)]
        if self.init is not None and not self.init.startswith(("hf:", "run:")):
            stages.append(self.init)
        return tuple(dict.fromkeys(stages))

    def objective(self, model: Decoder, *, training: bool) -> Objective:
        """What the stage minimises; `training` is False on held-out data (no dropout)."""
        raise NotImplementedError(f"{type(self).__name__} has no objective")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(Train):
    """Next-token prediction on text; also mid-training and annealing."""

    z_loss: float = 0.0

    def objective(self, model: Decoder, *, training: bool) -> Objective:
        from easylm_jax.objectives import language_modelling

        return language_modelling(model, z_loss=self.z_loss if training else 0.0, dropout=training and self.dropout > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFT(Train):
    """Supervised fine-tuning on conversations. `reduction` "sequence_sum" is Tülu 3's `sum` (spec tulu3 §2.1)."""

    reduction: Literal["token", "sequence_sum"] = "token"

    def objective(self, model: Decoder, *, training: bool) -> Objective:
        from easylm_jax.objectives import language_modelling

        reduction = self.reduction if training else "token"
        return language_modelling(model, reduction=reduction, dropout=training and self.dropout > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel(Train):
    """A scalar head on a decoder, trained on preference pairs (Bradley-Terry; spec tulu25 §4.2, tulu3 §4).

    Started from a language model, its vocabulary head is dropped and a fresh scalar head put in its place.
    """

    scalar_head: ClassVar[bool] = True
    use_margin: bool = False

    def objective(self, model: Decoder, *, training: bool) -> Objective:
        from easylm_jax.objectives import reward_modelling

        return reward_modelling(model, use_margin=self.use_margin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(Train):
    """Preference optimisation without a reward model; `loss` is one of the kinds of `objectives.preference_loss`.

    `reference` says where the log-probabilities of the starting model come from: "cached" computes them once before
    training and keeps them beside the data, "model" keeps the starting model on the devices and scores every batch.
    """

    loss: Literal["dpo", "dpo_norm", "ipo", "simpo", "orpo", "wpo", "kto"] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float | None = None
    reference: Literal["cached", "model"] = "cached"

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the starting model."""
        return self.loss not in ("simpo", "orpo")

    def objective(self, model: Decoder, *, training: bool) -> Objective:
        from easylm_jax.objectives import preference_optimization

        return preference_optimization(
            model, self.loss, beta=self.beta, label_smoothing=self.label_smoothing, gamma=self.gamma,
            reference=self.reference if self.needs_reference else None,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Stages that are run in the order of their needs. `mesh` lays out the devices (`easylm_jax.mesh`)."""

    name: str
    stages: tuple[Stage, ...]
    mesh: str = "fsdp=-1"

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.name or "/" in self.name:
            raise UserError(f"recipe name {self.name!r} must be usable as a folder's name")
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
        """The stage called `name`."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"recipe {self.name} has no stage {name!r}; it has {', '.join(s.name for s in self.stages)}")
