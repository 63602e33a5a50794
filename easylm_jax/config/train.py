"""Training on existing data: pre-training, supervised fine-tuning, reward models and preference optimisation."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from easylm_jax.config import fields
from easylm_jax.config.base import Checkpoints, ModelUse, Monitoring, Stage, Validation, models_of, stages_of_data
from easylm_jax.config.bounds import BelowOne, Bounds, Count, NonNegative, Positive
from easylm_jax.config.data import DataSpec
from easylm_jax.config.evaluate import Benchmarks
from easylm_jax.config.expression import parse_call
from easylm_jax.config.optimizer import LoraConfig, OptimizerConfig
from easylm_jax.runtime.functions import resolve
from models.config import Compute, DecoderConfig
from models.errors import UserError

if TYPE_CHECKING:
    from easylm_jax.objectives.base import Objective
    from models.model import Model


_LENGTH_FIELDS = ("data.sequence_length", "validation.data.sequence_length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """Training on existing data: what pre-training, fine-tuning and preference training have in common.

    Exactly one of `model` and `init` is given, and `steps` or `epochs` or both.
    """

    family: ClassVar[str] = "train"
    trains: ClassVar[bool] = True
    scalar_head: ClassVar[bool] = False
    head_std: ClassVar[float | None] = None

    model: str | DecoderConfig | None = None
    """A new model: the name of a preset, such as "olmo2-1b", or a `DecoderConfig`. Either this or `init` is given."""
    init: str | None = None
    """The model to start from: a stage of the recipe, `hf:<folder or hub name>`, or `run:<folder of a stage>`."""
    keep_moments: bool = False
    """Whether the optimiser's moments of `init` are restored too, as in OLMo 2's second stage (spec olmo §10.2)."""
    data: DataSpec
    """What is trained on."""
    validation: Validation | None = None
    """Held-out data, evaluated with the stage's loss; None for none."""
    benchmarks: Benchmarks | None = fields.added_later(None)
    """Benchmarks that the model is asked while it is trained; None for none."""
    batch: Count
    """Rows of the packed cache in one step."""
    accumulate: Count = 1
    """Micro-batches that a step is split into, where it does not fit into memory. The result is the same,
    except that a mixture of experts balances the load of each micro-batch."""
    steps: Count | None = None
    """Steps after which training ends. With `epochs` too, the first to be reached ends it."""
    epochs: Positive | None = None
    """Passes through the data after which training ends; may be a fraction."""
    examples: Count | None = None
    """Examples of an epoch as published. Plans, which are made without data, compute the number of steps from it."""
    optimizer: OptimizerConfig
    """The optimiser, with its learning rate."""
    dropout: BelowOne = 0.0
    """Probability that an activation is left out in training."""
    load_balancing: NonNegative | None = fields.added_later(None)
    """Weight of the load-balancing loss of a mixture of experts (docs/moe.md); None keeps that of the model that the
    stage starts from. OLMoE was fine-tuned with 0 (spec olmo §18)."""
    router_z: NonNegative | None = fields.added_later(None)
    """Weight of the router z-loss of a mixture of experts; None keeps that of the model."""
    lora: LoraConfig | None = None
    """Trains an adapter and keeps the other parameters fixed (docs/lora.md); None trains the parameters."""
    compute: Compute = Compute()
    """How the model is computed: dtype, memory, kernels."""
    checkpoints: Checkpoints = Checkpoints()
    """What is saved and kept. Not part of the settings that decide whether a stage is done."""
    monitoring: Monitoring = Monitoring()
    """Where metrics go besides `metrics.jsonl`."""

    def __post_init__(self):
        super().__post_init__()
        if (self.model is None) == (self.init is None):
            raise UserError(f"stage {self.name}: give either model (fresh parameters) or init (a checkpoint)")
        if self.steps is None and self.epochs is None:
            raise UserError(f"stage {self.name}: give steps or epochs (or both: the first to be reached ends it)")
        if self.keep_moments and self.lora:
            raise UserError(f"stage {self.name}: keep_moments needs the same trained parameters, which lora changes")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*stages_of_data(self.all_data), *models_of(self.init)]))

    @property
    def all_data(self) -> tuple[DataSpec, ...]:
        """The data of training, and of validation if there is any."""
        return (self.data,) if self.validation is None else (self.data, self.validation.data)

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        tokens, field = max((data.longest, at) for at, data in zip(_LENGTH_FIELDS, self.all_data, strict=False))
        kind: Literal["language", "any"] = "any" if self.scalar_head else "language"
        return (ModelUse("model" if self.init is None else "init", self.init, kind, self.all_data, tokens, field),)

    @property
    def rows_per_update(self) -> int:
        return self.batch

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.data.sequence_length

    @property
    def work(self) -> str:
        return f"{self.batch:,} × {self.data.sequence_length:,} tokens"

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """The optimisers, by the names of their fields."""
        return {"optimizer": self.optimizer}

    @property
    def reference_source(self) -> Literal["cached", "model"] | None:
        """How the loss gets log-probabilities of the reference model; None for losses without one."""
        return None

    @property
    def whole_rows(self) -> bool:
        """Whether every row holds exactly one example."""
        return self.data.packing == "none" or (self.data.kind == "prompts" and self.data.packing is None)

    def objective(self, model: Model, *, training: bool) -> Objective:
        """The loss that the stage minimises; `training` is False on held-out data (no dropout, no auxiliary terms)."""
        raise NotImplementedError(f"{type(self).__name__} has no objective")

    def named_objective(self, call: str, model: Model, **settings: object) -> Objective:
        """The objective that `call` names in `objectives.OBJECTIVES`, given its options and the stage's `settings`."""
        from easylm_jax.objectives import OBJECTIVES

        try:
            name, options, named = parse_call(call)
            build = resolve(OBJECTIVES[name])
            inspect.signature(build).bind(model, *options, **named, **settings)
        except KeyError:
            known = ", ".join(OBJECTIVES)
            raise UserError(f"stage {self.name}: no objective is called {call!r}; there are {known}") from None
        except (TypeError, UserError) as error:
            raise UserError(f"stage {self.name}: loss {call!r}: {error}") from error
        return build(model, *options, **named, **settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(Train):
    """Next-token prediction on text; also mid-training and annealing."""

    z_loss: NonNegative = 0.0
    """Coefficient of the z-loss, the mean squared log of the softmax's normaliser, which keeps logits small; 0 for
    none."""
    loss: str = fields.added_later("language_modelling")
    """The objective, with options where it has some: a name of `easylm_jax.objectives.OBJECTIVES`."""

    def objective(self, model: Model, *, training: bool) -> Objective:
        settings = {"z_loss": self.z_loss} if training and self.z_loss else {}
        return self.named_objective(self.loss, model, dropout=training and self.dropout > 0, **settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFT(Train):
    """Supervised fine-tuning on conversations."""

    reduction: Literal["token", "sequence_sum"] = "token"
    """"token" averages over the trained tokens of a step. "sequence_sum" adds up the tokens of a conversation and
    averages over conversations, as Tülu 3's `sum` (spec tulu3 §2.1)."""
    loss: str = fields.added_later("language_modelling")
    """The objective, with options where it has some: a name of `easylm_jax.objectives.OBJECTIVES`."""

    def objective(self, model: Model, *, training: bool) -> Objective:
        settings = {"reduction": self.reduction} if training and self.reduction != "token" else {}
        return self.named_objective(self.loss, model, dropout=training and self.dropout > 0, **settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel(Train):
    """A scalar head on a decoder, trained on preference pairs (Bradley-Terry; spec tulu25 §4.2, tulu3 §4).

    The vocabulary head of a language model is replaced by a freshly initialised scalar head; a model with a scalar head
    keeps it.
    """

    scalar_head: ClassVar[bool] = True
    use_margin: bool = False
    """Whether the margins of the data are subtracted in the loss."""
    head_init: Literal["tulu3", "tulu25"] = fields.added_later("tulu3")
    """How a new scalar head is initialised: "tulu3" with variance 1/(d + 1), "tulu25" with standard deviation 0.02 for
    any width d (spec tulu3 §4, tulu25 §4.2)."""

    def __post_init__(self):
        super().__post_init__()
        if self.head_init != "tulu3" and self.init is None:
            raise UserError(f"stage {self.name}: head_init is for a head put on a language model; give init, not model")

    @property
    def head_std(self) -> float | None:  # type: ignore[override]
        """Standard deviation of a freshly initialised scalar head; None for that of the model's width."""
        return 0.02 if self.head_init == "tulu25" else None

    def objective(self, model: Model, *, training: bool) -> Objective:
        from easylm_jax.objectives import reward_modelling

        return reward_modelling(model, use_margin=self.use_margin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(Train):
    """Preference optimisation without a reward model. The reference model is the model before training."""

    loss: Literal["dpo", "dpo_norm", "ipo", "simpo", "orpo", "wpo", "kto"] = "dpo"
    """The loss on a pair, a kind of `easylm_jax.objectives.preference_loss`; "kto" takes the responses of a pair apart.
    """
    beta: Positive = 0.1
    """How much a difference to the reference model counts: with a small beta the model may move further."""
    label_smoothing: Annotated[float, Bounds(low=0, below=0.5)] = 0.0
    """The probability with which the labels of pairs are taken to be swapped."""
    gamma: NonNegative | None = None
    """SimPO's margin; None for other losses."""
    reference: Literal["cached", "model"] = "cached"
    """"cached" computes the log-probabilities of the reference model once before training and stores them beside the
    data; "model" keeps that model on the devices and computes them for every batch. The reference model is the model
    before training."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss needs log-probabilities of the reference model."""
        return self.loss not in ("simpo", "orpo")

    @property
    def reference_source(self) -> Literal["cached", "model"] | None:
        return self.reference if self.needs_reference else None

    def objective(self, model: Model, *, training: bool) -> Objective:
        from easylm_jax.objectives import preference_optimization

        return preference_optimization(
            model, self.loss, beta=self.beta, label_smoothing=self.label_smoothing, gamma=self.gamma,
            reference=self.reference_source,
        )  # fmt: skip
