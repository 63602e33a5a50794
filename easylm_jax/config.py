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
import re
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from easylm_jax import fields
from easylm_jax.data.spec import DataSpec, Source
from easylm_jax.lora import LoraConfig
from easylm_jax.optimizer import OptimizerConfig, SkipStep
from easylm_jax.rewards.expression import Expression
from easylm_jax.rewards.judge import TEMPLATES
from easylm_jax.steps import Objective
from models.config import Compute, DecoderConfig, RopeScaling
from models.decoder import Decoder
from models.errors import UserError

__all__ = [
    "DPO",
    "GRPO",
    "PPO",
    "SFT",
    "BestOfN",
    "Checkpoints",
    "Compute",
    "DataSpec",
    "DecoderConfig",
    "Entry",
    "Evaluate",
    "JudgeModel",
    "LoraConfig",
    "MajorityVote",
    "MakeData",
    "Monitoring",
    "OnlineDPO",
    "OptimizerConfig",
    "Pretrain",
    "Published",
    "RL",
    "Recipe",
    "Reward",
    "RewardModel",
    "RopeScaling",
    "Sampling",
    "SkipStep",
    "Source",
    "Stage",
    "Task",
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
    FREE = ("checkpoints", "monitoring", "examples")


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


def _stages_of_data(data: Iterable[DataSpec]) -> list[str]:
    """Stages whose files or vocabulary these data read."""
    data = list(data)
    stages = [d.tokenizer.removeprefix("stage:") for d in data if d.tokenizer.startswith("stage:")]
    return stages + [name for d in data for name in _stages_of(d.sources)]


def _models_of(*names: str | None) -> list[str]:
    """Those of the models named that are stages of the recipe."""
    return [name for name in names if name is not None and not name.startswith(("hf:", "run:"))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """Training on data that is there already: what pre-training and fine-tuning share.

    Exactly one of `model` (a preset's name or a shape: fresh parameters) and `init` (parameters to start from) is
    given. `init` is a stage of the recipe, `hf:<folder or hub name>`, or `run:<stage folder>`; with `keep_moments` the
    optimiser's moments come along (OLMo 2's second stage, spec olmo §10.2).

    `batch` counts rows of the packed cache for one update, `accumulate` the micro-batches it is cut into. It ends after
    `steps` or `epochs`, whichever is given, or comes first. `lora` trains an adapter and leaves the parameters as they
    were. `examples` is how many an epoch has as the data's authors count them: a plan is made without data and tells
    the stage's length by it.
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
    examples: int | None = None
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
        for name in ("batch", "accumulate", "steps", "epochs", "examples"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"stage {self.name}: {name} must be above 0, not {value}")

    @property
    def needs(self) -> tuple[str, ...]:
        data = [self.data] + ([self.validation.data] if self.validation else [])
        return tuple(dict.fromkeys([*_stages_of_data(data), *_models_of(self.init)]))

    @property
    def whole_rows(self) -> bool:
        """Whether every example has a row of its own."""
        return self.data.packing == "none" or (self.data.kind == "prompts" and self.data.packing is None)

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
class Sampling:
    """How responses are drawn; see `easylm_jax.decode.Engine.generate`. `slots` rows are decoded at once."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop_strings: tuple[str, ...] = ()
    slots: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeModel:
    """A language model that judges responses: it is asked about each, and its reply is read to a score from 0 to 1.

    `model` is a stage, `hf:<name>` or `run:<folder>`. `template` is one of `easylm_jax.rewards.judge.TEMPLATES`, such
    as "general-quality_ref"; left out, the record's `dataset` names it. `chat_template` and `tokenizer` are the judge's
    own, where the model does not say them. `sampling` is greedy unless it has a temperature.
    """

    model: str
    template: str | None = "general-quality"
    chat_template: str | None = None
    tokenizer: str | None = None
    sampling: Sampling = Sampling(1024, temperature=0.0)

    def __post_init__(self):
        if self.template is not None and self.template not in TEMPLATES:
            raise UserError(f"judge: no template {self.template!r}; there are {', '.join(TEMPLATES)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """What a response is worth: gain · score + bias.

    `model` is a reward model (a stage, `hf:<name>` or `run:<folder>`); alone, its score is the score. `verifier` is an
    expression of verifiers (`easylm_jax.rewards.expression`), from `"gsm8k"` to `"10 * math if r1_format else 0"`, in
    which `model` stands for the reward model's score and `judge` for that of a language model that is asked about each
    response. A verifier is a name of `easylm_jax.rewards.VERIFIERS` or
    `"module:function"`, called as `function(response, record)` with the columns of the prompt's record, in one of
    `workers` processes (left out, as many as there are cores to spare); a call that takes more than `seconds` is ended
    and gives 0. A response that never ended has `missing_end` in place of its score (−10 for PPO, 0 for GRPO; None
    leaves its score).
    """

    model: str | None = None
    judge: JudgeModel | None = None
    verifier: str | None = None
    missing_end: float | None = -10.0
    gain: float = 1.0
    bias: float = 0.0
    seconds: float = 10.0
    workers: int | None = None

    def __post_init__(self):
        if self.model is None and self.verifier is None:
            raise UserError("reward: give a model, a verifier, or both")
        if not self.seconds > 0 or (self.workers is not None and self.workers < 1):
            raise UserError("reward: seconds must be above 0 and workers at least 1")
        uses_judge = self.verifier is not None and Expression(self.verifier).uses_judge
        if uses_judge != (self.judge is not None):
            raise UserError(
                f"reward: {self.verifier!r} has a judge's score in it; say which model judges (reward.judge)"
                if uses_judge
                else "reward: a judge is given whose score nothing uses; write `judge` into reward.verifier"
            )
        if self.verifier is None:
            return
        uses_model = Expression(self.verifier).uses_model
        if uses_model and self.model is None:
            raise UserError(
                f"reward: {self.verifier!r} has the score of a reward model in it; say which (reward.model)"
            )
        if self.model is not None and not uses_model:
            raise UserError(
                f"reward: {self.model} is a reward model whose score {self.verifier!r} does not use; write `model` "
                "into it, or leave reward.model out (a value model can start from it all the same: value)"
            )

    @property
    def models(self) -> tuple[str | None, ...]:
        """The models that score: a reward model, a judge."""
        return self.model, None if self.judge is None else self.judge.model


@dataclasses.dataclass(frozen=True, kw_only=True)
class RL(Train):
    """Training on responses that the policy itself writes: what PPO, GRPO and online DPO share.

    `data` are prompts (kind "prompts"), `batch` the prompts of one rollout, `steps` the rollouts. Each prompt is
    answered `samples` times; the responses are cut into updates of `mini_batch` (left out: all at once), each of
    `accumulate` micro-batches, and gone through `rollout_epochs` times. `reference` is the model that divergence is
    measured from (left out, `init`). `logprob_temperature` divides the logits where log-probabilities are trained on;
    left out, it is the temperature that was sampled at. `sampler_correction` bounds weights that correct for a sampler
    whose numbers differ from the trainer's (truncated importance sampling; spec tulu3 §5.4). The stage's `validation`
    are prompts that `check`, a verifier, judges greedy answers to; `keep_samples` responses of a rollout are written
    to `samples/` now and then.

    `asynchronous` is how many steps old the policy is that writes: 0 writes, then updates; with 1 the next rollout is
    written and judged while the updates of this one go on, by the policy from before them (Tülu 3 §6; spec tulu3
    §5.5), and so on. The correction for the sampler is then on, bounded at 2 unless said otherwise. With several
    devices in one process the last `rollout_devices` of them write and the others train; left out, all do both, and
    nothing overlaps.

    `decode_mesh` is the shape of the devices that write, such as "dp=-1,tp=4", where it should be another than that in
    which they train: the policy's parameters move once a rollout (docs/layouts.md).
    """

    reward: Reward
    sampling: Sampling
    samples: int = 1
    mini_batch: int | None = None
    rollout_epochs: int = 1
    reference: str | None = None
    logprob_temperature: float | None = None
    sampler_correction: float | None = None
    check: str | None = None
    keep_samples: int = 4
    asynchronous: int = 0
    rollout_devices: int | None = None
    decode_mesh: str | None = None

    def __post_init__(self):
        super().__post_init__()
        rows = self.batch * self.samples
        for name in ("samples", "rollout_epochs", "mini_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"stage {self.name}: {name} must be at least 1, not {value}")
        if self.init is None:
            raise UserError(f"stage {self.name}: give init, the policy to start from")
        if self.keep_moments or self.dropout:
            raise UserError(
                f"stage {self.name}: keep_moments and dropout are for stages that read data; leave them out"
            )
        if rows % self.update_rows:
            raise UserError(
                f"stage {self.name}: mini_batch {self.mini_batch} does not divide the {rows} responses of a rollout"
            )
        for what, data in (("data", self.data), ("validation", self.validation and self.validation.data)):
            if data and data.kind != "prompts":
                raise UserError(f"stage {self.name}: {what} must be prompts (kind 'prompts'), not {data.kind!r}")
        if self.validation is not None and self.check is None:
            raise UserError(f"stage {self.name}: validation prompts need check, the verifier of the answers")
        if self.sampling.temperature <= 0:
            raise UserError(f"stage {self.name}: sampling.temperature must be above 0; greedy answers explore nothing")
        if self.asynchronous < 0 or (self.rollout_devices is not None and self.rollout_devices < 1):
            raise UserError(f"stage {self.name}: asynchronous must not be below 0, rollout_devices not below 1")
        if self.rollout_devices is not None and not self.asynchronous:
            raise UserError(f"stage {self.name}: rollout_devices are for asynchronous rollouts; set asynchronous")

    @property
    def update_rows(self) -> int:
        """Responses of one update."""
        return self.mini_batch or self.batch * self.samples

    @property
    def score_rows(self) -> int:
        """Responses that go through a model at once where nothing is trained."""
        return self.update_rows // self.accumulate

    @property
    def updates(self) -> int:
        """Updates that one rollout is trained for."""
        return self.batch * self.samples // self.update_rows * self.rollout_epochs

    @property
    def correction(self) -> float | None:
        """The bound of the weights that correct for the sampler; None without them."""
        return 2.0 if self.sampler_correction is None and self.asynchronous else self.sampler_correction

    @property
    def temperature(self) -> float:
        """What logits are divided by where log-probabilities are trained on."""
        return self.sampling.temperature if self.logprob_temperature is None else self.logprob_temperature

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().needs, *_models_of(*self.reward.models, self.reference)]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPO(RL):
    """Proximal policy optimisation with a value model (spec tulu25 §4.4, tulu3 §5.2).

    `value` is what the value model starts from: left out, the reward model, or `init` under a fresh scalar head where
    there is none. `kl` is the price of a nat in the reward, at every token; with `kl_target` (nats a response) it
    adapts. `value_only` rollouts at the start train the value model alone. `compat="tulu25"` recomputes what belongs to
    the rollout with the parameters of each mini-batch, as the released code did, so that the ratio is always 1.
    """

    value: str | None = None
    value_optimizer: OptimizerConfig | None = None
    kl: float = 0.05
    kl_kind: Literal["k1", "k2", "k3"] = "k1"
    kl_target: float | None = None
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    dual_clip: float | None = None
    value_clip: float | None = 0.2
    value_coefficient: float = 0.1
    whiten: Literal["rollout", "mini_batch", "none"] = "rollout"
    value_only: int = 0
    compat: Literal["tulu25"] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.kl_target is not None and not self.kl_target > 0:
            raise UserError(f"stage {self.name}: kl_target must be above 0 nats, not {self.kl_target}")
        if self.value_only < 0 or (self.steps is not None and self.value_only >= self.steps):
            raise UserError(f"stage {self.name}: value_only must leave rollouts of the {self.steps} for the policy")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().needs, *_models_of(self.value)]))

    @property
    def value_init(self) -> str:
        """What the value model starts from."""
        return self.value or self.reward.model or str(self.init)

    def objective(self, model: Decoder, *, training: bool) -> Objective:
        from easylm_jax.objectives import policy_optimization

        return policy_optimization(
            model, temperature=self.temperature, clip_low=self.clip, clip_high=self.clip,
            dual_clip=self.dual_clip,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPO(RL):
    """Group-relative policy optimisation: advantages against a prompt's other answers, no value model (tulu3 §5.3).

    `kl` weighs the divergence from the reference in the loss. `clip_low` and `clip_high` may be infinite (no clipping),
    `dual_clip` bounds the ratio where the advantage is negative. `whiten` "rollout" standardises the advantages once
    more over all tokens of the rollout, as the code of Spurious Rewards does (spec spurious_rewards §5). `drop_equal`
    leaves out groups whose rewards are all equal, which teach nothing but would count in the denominator; with
    `refill`, up to so many more batches of prompts are answered to replace them (DAPO's dynamic sampling).
    `mask_truncated` leaves out responses that never ended.
    """

    kl: float = 0.0
    kl_kind: Literal["k1", "k2", "k3", "k4"] = "k3"
    advantages: Literal["grpo", "standard", "mean", "dr_grpo", "rloo"] = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    whiten: Literal["none", "rollout"] = "none"
    aggregation: Literal["token", "sequence", "dr_grpo", "bnpo"] = "token"
    ratio: Literal["token", "sequence"] = "token"
    surrogate: Literal["clip", "cispo"] = "clip"
    drop_equal: bool = False
    refill: int = 0
    mask_truncated: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 2:
            raise UserError(f"stage {self.name}: samples must be at least 2; one answer has no group to be better than")
        if self.refill < 0:
            raise UserError(f"stage {self.name}: refill must not be below 0, but is {self.refill}")

    def objective(self, model: Decoder, *, training: bool) -> Objective:
        from easylm_jax.objectives import policy_optimization

        return policy_optimization(
            model, temperature=self.temperature, clip_low=self.clip_low, clip_high=self.clip_high,
            dual_clip=self.dual_clip, aggregation=self.aggregation, constant=float(self.sampling.max_new_tokens),
            ratio=self.ratio, surrogate=self.surrogate, kl=self.kl, kl_kind=self.kl_kind,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineDPO(RL):
    """DPO on pairs that the policy writes and the reward orders: a prompt's best answer against its worst.

    Prompts whose answers are all worth the same are skipped (spec tulu25 §4.5). `mini_batch` counts answers, two of
    which make a pair at most.
    """

    samples: int = 2
    loss: Literal["dpo", "dpo_norm", "ipo", "simpo"] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 2:
            raise UserError(f"stage {self.name}: samples must be at least 2, to have a better and a worse answer")
        if self.update_rows % self.samples:
            raise UserError(f"stage {self.name}: mini_batch must hold whole prompts of {self.samples} answers")
        if self.sampler_correction is not None or self.temperature != 1.0:
            raise UserError(
                f"stage {self.name}: DPO compares whole answers at temperature 1; set logprob_temperature to 1 and "
                "leave sampler_correction out"
            )

    @property
    def correction(self) -> None:
        """None: a loss of whole answers has no weights of tokens, whoever wrote them."""

    def objective(self, model: Decoder, *, training: bool) -> Objective:
        from easylm_jax.objectives import preference_optimization

        return preference_optimization(
            model, self.loss, beta=self.beta, label_smoothing=self.label_smoothing, gamma=self.gamma,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfN(Stage):
    """Answers every prompt `samples` times and keeps the best: rejection sampling, and pairs of best and worst.

    It writes `best.jsonl` (conversations, for SFT), `pairs.jsonl` (for DPO or a reward model) and `answers.jsonl`
    (every answer with its score), which later stages read as `Source("stage:<name>/best.jsonl")`. A prompt gives at
    most `pairs` pairs: its best answer with its worst, the next best with the next worst, each answer in one pair, as
    long as they differ in score.

    `decode_mesh` is the shape of the devices, where it should be another than the recipe's `mesh`.
    """

    init: str
    data: DataSpec
    reward: Reward
    sampling: Sampling
    samples: int = 4
    pairs: int = 1
    batch: int = 64
    limit: int | None = None
    compute: Compute = Compute()
    decode_mesh: str | None = None

    def __post_init__(self):
        fields.check_types(self, self.name)
        if self.data.kind != "prompts":
            raise UserError(f"stage {self.name}: data must be prompts (kind 'prompts'), not {self.data.kind!r}")
        if min(self.samples, self.pairs, self.batch) < 1:
            raise UserError(f"stage {self.name}: samples, pairs and batch must be at least 1")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*_stages_of_data([self.data]), *_models_of(self.init, *self.reward.models)]))


_VARIANTS = re.compile(r"least-voted|shuffled|truths|unsolved|rank-\d{1,3}|code-at-most-\d{1,3}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MajorityVote(Stage):
    """Labels prompts with the answer that a model gives most often of `samples` (spec spurious_rewards §4.2).

    It writes `labelled.jsonl` (every prompt with its pseudo-label in the column `label` and the record's own one in
    `truth`), `incorrect.jsonl` (those whose pseudo-label is wrong), `votes.jsonl` (all answers, counted), and a file
    for each of `variants`, which `majority_vote.labelled` lists. `extract` is a function `module:function` from a
    response to its answer as text, by which votes are counted; `check` is the verifier (an expression) that knows with
    the record's own label whether a response is right.

    `decode_mesh` is the shape of the devices, where it should be another than the recipe's `mesh`.
    """

    init: str
    data: DataSpec
    sampling: Sampling
    check: str
    extract: str = "easylm_jax.rewards.spurious:answer_of"
    label: str = "answer"
    variants: tuple[str, ...] = ()
    samples: int = 64
    batch: int = 64
    limit: int | None = None
    compute: Compute = Compute()
    decode_mesh: str | None = None

    def __post_init__(self):
        fields.check_types(self, self.name)
        Expression(self.check)
        if self.data.kind != "prompts":
            raise UserError(f"stage {self.name}: data must be prompts (kind 'prompts'), not {self.data.kind!r}")
        if min(self.samples, self.batch) < 1:
            raise UserError(f"stage {self.name}: samples and batch must be at least 1")
        for variant in self.variants:
            if not _VARIANTS.fullmatch(variant):
                raise UserError(
                    f"stage {self.name}: no labels {variant!r}; there are least-voted, shuffled, truths, unsolved, "
                    "rank-K and code-at-most-X"
                )

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*_stages_of_data([self.data]), *_models_of(self.init)]))


@dataclasses.dataclass(frozen=True)
class Task:
    """Held-out prompts and the verifier (an expression) that judges answers to them.

    `limit` takes the first so many prompts. `also` names further columns, each an expression over the same answers.
    With `samples`, a prompt's score is the mean over its answers, and pass@samples (the best of them) stands beside;
    `best_of`, a reward model, picks one of them.
    """

    name: str
    data: DataSpec
    verifier: str
    sampling: Sampling
    samples: int = 1
    limit: int | None = None
    best_of: str | None = None
    also: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of a table: a method, the stages (or `hf:`, `run:` models) that are its seeds, and what it starts from."""

    method: str
    stages: tuple[str, ...]
    over: str | None = None


@dataclasses.dataclass(frozen=True)
class Published:
    """A number of a paper's table, in the paper's unit, for the report to print beside ours."""

    method: str
    column: str
    value: float
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Judges models on held-out prompts and leaves the table: `table.json` in its folder and in the recipe's.

    With `reference`, the divergence of every model from it is measured too, on sampled answers to the first task.

    `decode_mesh` is the shape of the devices, where it should be another than the recipe's `mesh`.
    """

    title: str
    tasks: tuple[Task, ...]
    entries: tuple[Entry, ...]
    reference: str | None = None
    kl_prompts: int = 256
    published: tuple[Published, ...] = ()
    compute: Compute = Compute()
    decode_mesh: str | None = None

    def __post_init__(self):
        fields.check_types(self, self.name)
        methods = [entry.method for entry in self.entries]
        for entry in self.entries:
            if entry.over is not None and entry.over not in methods:
                raise UserError(f"stage {self.name}: {entry.method} is compared with {entry.over!r}, which is no entry")
            if not entry.stages:
                raise UserError(f"stage {self.name}: {entry.method} names no stage")
        for task in self.tasks:
            if [other.name for other in self.tasks].count(task.name) > 1:
                raise UserError(f"stage {self.name}: two tasks are called {task.name!r}")
            if task.data.kind != "prompts":
                raise UserError(f"stage {self.name}: task {task.name} must have prompts (kind 'prompts')")

    @property
    def needs(self) -> tuple[str, ...]:
        models = [name for entry in self.entries for name in entry.stages] + [task.best_of for task in self.tasks]
        return tuple(
            dict.fromkeys([*_stages_of_data(t.data for t in self.tasks), *_models_of(*models, self.reference)])
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Stages that are run in the order of their needs. `mesh` lays out the devices (`easylm_jax.mesh`); `pod` is the
    TPU slice that sizes and mesh are meant for, such as "v5p-64", which `easylm plan` compiles for."""

    name: str
    stages: tuple[Stage, ...]
    mesh: str = "fsdp=-1"
    pod: str | None = None

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
