"""Reinforcement learning on responses that the policy generates: PPO, GRPO and online DPO."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from easylm_jax.config import fields
from easylm_jax.config.base import ModelUse, Validation, models_of
from easylm_jax.config.bounds import Bounds, Count, Fraction, Natural, NonNegative, Positive
from easylm_jax.config.data import DataSpec
from easylm_jax.config.optimizer import OptimizerConfig
from easylm_jax.config.reward import Reward, SampledResponses, Sampling
from easylm_jax.config.train import Train
from models.errors import UserError

Clip = Annotated[float, Bounds(above=0, infinite=True)]  # a clipping range; infinity clips nothing

if TYPE_CHECKING:
    from easylm_jax.objectives.base import Objective
    from models.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class RL(SampledResponses, Train):
    """Training on responses that the policy generates: what PPO, GRPO and online DPO have in common.

    One step is one rollout: `batch` prompts, `samples` responses to each. The responses are split into updates of
    `mini_batch` responses, each of `accumulate` micro-batches, and used `rollout_epochs` times. `steps` counts
    rollouts.
    """

    family: ClassVar[str] = "rl"
    generates: ClassVar[bool] = True
    algorithm: ClassVar[str] = ""  # how updates are built from a rollout; see `train/rl/advantages.py`

    data: DataSpec
    """The prompts (kind "prompts")."""
    batch: Count
    """Prompts of a step; each step samples `samples` responses to each of them."""
    steps: Count | None = None
    """Rollouts after which training ends. With `epochs` too, the first to be reached ends it."""
    validation: Validation | None = None
    """Held-out prompts; greedy responses to them are scored by `check`."""
    reward: Reward
    """How responses are scored."""
    sampling: Sampling
    """How responses are sampled."""
    samples: Count = 1
    """Responses to each prompt."""
    mini_batch: Count | None = None
    """Responses of one update; None for all responses of the rollout, so that a step has one update."""
    rollout_epochs: Count = 1
    """How often the responses of a rollout are trained on."""
    reference: str | None = None
    """The model that the KL divergence is measured from; None for `init`."""
    logprob_temperature: Positive | None = None
    """Divides the logits in training; None for the sampling temperature, so that the ratio starts at 1."""
    sampler_correction: Positive | Literal["off"] | None = None
    """Upper bound of importance weights that correct for differences between sampler and trainer (truncated importance
    sampling; spec tulu3 §5.4). None is 2 with asynchronous rollouts and off without them; "off" disables them there
    too, as in the released PPO and GRPO of Tülu 3."""
    router_replay: bool = fields.added_later(False)
    """Whether the policy of a mixture of experts is trained with the experts that computed each token when it was
    sampled, so that sampler and trainer do not differ by tokens that fall to other experts (docs/moe.md)."""
    check: str | None = None
    """The verifier (an expression) of greedy responses to the validation prompts: before the first update (step 0),
    every `validation.every` steps and at the end."""
    keep_samples: Natural = 4
    """Responses of a rollout that are written to `samples/` from time to time; above 0, all responses to validation
    prompts go to `samples/held_out/`."""
    asynchronous: Natural = 0
    """How many steps the sampling policy is behind. With 0 sampling and updates alternate; with 1 the next rollout is
    sampled and scored during the updates of the current one (Tülu 3 §6; spec tulu3 §5.5)."""
    rollout_devices: Count | None = None
    """The last so many devices generate responses and the others train, at the same time; with several processes, they
    are the devices of whole processes. None lets all do both in turn, without overlap (on one device, only verifiers
    and other host work overlap). Needs `asynchronous`."""

    def __post_init__(self):
        super().__post_init__()
        rows = self.batch * self.samples
        if self.init is None:
            raise UserError(f"stage {self.name}: give init, the policy to start from")
        if self.keep_moments or self.dropout:
            raise UserError(
                f"stage {self.name}: keep_moments and dropout are only for stages that train on data; leave them out"
            )
        if rows % self.update_rows:
            raise UserError(
                f"stage {self.name}: mini_batch {self.mini_batch} does not divide the {rows} responses of a rollout"
            )
        for what, data in (("data", self.data), ("validation", self.validation and self.validation.data)):
            if data and data.kind != "prompts":
                raise UserError(f"stage {self.name}: {what} must be prompts (kind 'prompts'), not {data.kind!r}")
        if self.validation is not None and self.check is None:
            raise UserError(f"stage {self.name}: validation prompts need check, the verifier of the responses")
        if self.sampling.temperature <= 0:
            raise UserError(
                f"stage {self.name}: sampling.temperature must be above 0; greedy sampling does not explore"
            )
        if self.rollout_devices is not None and not self.asynchronous:
            raise UserError(f"stage {self.name}: rollout_devices are for asynchronous rollouts; set asynchronous")

    @property
    def models(self) -> dict[str, str | None]:
        value = {} if self.value_init is None else {"value": self.value_init}
        return {**value, **dict(zip(("reward", "judge"), self.reward.models, strict=True))}

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        asked = (self.all_data, self.sampling.least_context, "sampling.max_new_tokens")
        uses = [ModelUse("init", self.init, "language", *asked)]
        if self.reference is not None:
            uses.append(ModelUse("reference", self.reference, "language", *asked))
        if self.value_init is not None:
            uses.append(ModelUse("value", self.value_init, "any", *asked))
        return (*uses, *self.reward.model_uses(*asked))

    @property
    def value_init(self) -> str | None:
        """The model that the value model is initialised from; None without a value model."""
        return None

    def value_objective(self, model: Model) -> Objective:
        """The loss of the value model."""
        raise NotImplementedError(f"{type(self).__name__} has no value model")

    @property
    def value_warmup(self) -> int:
        """The number of rollouts at the start that train only the value model."""
        return 0

    @property
    def recomputes(self) -> bool:
        """Whether log-probabilities, values and advantages are recomputed for each update of a rollout."""
        return False

    @property
    def adaptive_kl_target(self) -> float | None:
        """The KL divergence (nats per response) that the KL coefficient adapts to; None for a constant one."""
        return None

    @property
    def rollout_attempts(self) -> int:
        """The most batches of prompts that one rollout may use."""
        return 1

    @property
    def group_rows(self) -> int:
        """Consecutive rows of an update that must be on one device."""
        return 1

    @property
    def rows_per_update(self) -> int:
        return self.update_rows

    @property
    def update_rows(self) -> int:
        """Responses in one update."""
        return self.mini_batch or self.batch * self.samples

    @property
    def score_rows(self) -> int:
        """Responses in one forward pass without training, such as for log-probabilities."""
        return self.update_rows // self.accumulate

    @property
    def updates(self) -> int:
        """Updates per rollout."""
        return self.batch * self.samples // self.update_rows * self.rollout_epochs

    @property
    def correction(self) -> float | None:
        """The upper bound of importance weights for the sampler correction; None without a correction."""
        if self.sampler_correction is None:
            return 2.0 if self.asynchronous else None
        return None if self.sampler_correction == "off" else self.sampler_correction

    @property
    def temperature(self) -> float:
        """The temperature that divides the logits in training."""
        return self.sampling.temperature if self.logprob_temperature is None else self.logprob_temperature

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys([*super().needs, *models_of(*self.reward.models, self.reward.moderator, self.reference)])
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPO(RL):
    """Proximal policy optimisation with a value model (spec tulu25 §4.4, tulu3 §5.2)."""

    algorithm: ClassVar[str] = "ppo"

    value: str | None = None
    """The model that the value model starts from; None for the reward model or, without one, `init` with a new scalar
    head."""
    value_optimizer: OptimizerConfig | None = None
    """The value model's optimiser; None for `optimizer`."""
    kl: NonNegative = 0.05
    """KL coefficient: the penalty in the reward of every token, in score per nat."""
    kl_kind: Literal["k1", "k2", "k3"] = "k1"
    """The estimator of the KL divergence: with d = log π − log π_reference, k1 is d, k2 is d²/2, k3 is exp(−d) − 1 + d.
    """
    kl_target: Positive | None = None
    """A KL divergence in nats per response that the KL coefficient adapts to; None keeps the coefficient."""
    gamma: Fraction = 1.0
    """Discount of later rewards, per token."""
    lam: Fraction = 0.95
    """λ of generalised advantage estimation."""
    clip: Clip = 0.2
    """The ratio of new and old probability counts up to 1 ± clip."""
    dual_clip: Clip | None = None
    """An upper bound of the ratio where the advantage is negative; None for none."""
    value_clip: Clip | None = 0.2
    """A value may move by this much from that of the rollout; None for no bound."""
    value_coefficient: NonNegative = 0.1
    """Weight of the value loss."""
    whiten: Literal["rollout", "mini_batch", "none"] = "rollout"
    """Where advantages are standardised: over the "rollout", over each "mini_batch", or not at all."""
    value_only: Natural = 0
    """Rollouts at the start that train only the value model; for one that starts with a new head."""
    compat: Literal["tulu25"] | None = None
    """"tulu25" recomputes log-probabilities, values and advantages with the parameters of each mini-batch, as the
    released code did, so that the ratio is always 1."""

    def __post_init__(self):
        super().__post_init__()
        if self.steps is not None and self.value_only >= self.steps:
            raise UserError(f"stage {self.name}: value_only must be less than steps ({self.steps})")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().needs, *models_of(self.value)]))

    @property
    def value_init(self) -> str:
        return self.value or self.reward.model or str(self.init)

    @property
    def value_warmup(self) -> int:
        return self.value_only

    @property
    def recomputes(self) -> bool:
        return self.compat == "tulu25"

    @property
    def adaptive_kl_target(self) -> float | None:
        return self.kl_target

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        own = {} if self.value_optimizer is None else {"value_optimizer": self.value_optimizer}
        return {**super().optimizers, **own}

    def objective(self, model: Model, *, training: bool) -> Objective:
        from easylm_jax.objectives import policy_optimization

        return policy_optimization(
            model, temperature=self.temperature, clip_low=self.clip, clip_high=self.clip,
            dual_clip=self.dual_clip,
        )  # fmt: skip

    def value_objective(self, model: Model) -> Objective:
        from easylm_jax.objectives import value_regression

        return value_regression(model, clip=self.value_clip, coefficient=self.value_coefficient)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPO(RL):
    """Group-relative policy optimisation: advantages relative to the other responses to a prompt (spec tulu3 §5.3)."""

    algorithm: ClassVar[str] = "grpo"

    kl: NonNegative = 0.0
    """KL coefficient: the weight of the divergence from the reference in the loss."""
    kl_kind: Literal["k1", "k2", "k3", "k4"] = "k3"
    """The estimator of the KL divergence: with d = log π − log π_reference, k1 is d, k2 is d²/2, k3 is exp(−d) − 1 + d,
    k4 is d times the ratio to the sampling policy."""
    advantages: Literal["grpo", "standard", "mean", "dr_grpo", "rloo"] = "grpo"
    """A reward compared with the others of its group: "grpo" divides by the standard deviation (n − 1), "standard" by
    that with n, "mean" and "dr_grpo" do not divide, "rloo" compares with the mean of the others."""
    clip_low: Clip = 0.2
    """The ratio counts down to 1 − clip_low; infinity disables clipping."""
    clip_high: Clip = 0.2
    """The ratio counts up to 1 + clip_high; infinity disables clipping."""
    dual_clip: Clip | None = None
    """An upper bound of the ratio where the advantage is negative; None for none."""
    whiten: Literal["none", "rollout"] = "none"
    """"rollout" also standardises the advantages over all tokens of the rollout, as the code of Spurious Rewards does
    (spec spurious_rewards §5)."""
    aggregation: Literal["token", "sequence", "dr_grpo", "bnpo"] = "token"
    """What the loss is averaged over: all tokens of an update ("token"), each response and then responses ("sequence"),
    `max_new_tokens` ("dr_grpo"), or the tokens of `bnpo_rows` responses ("bnpo", released GRPO code)."""
    bnpo_rows: Count | None = fields.added_later(None)
    """Responses of a micro-batch of "bnpo", whatever the devices and `accumulate`; None for those trained on at once.
    """
    ratio: Literal["token", "sequence"] = "token"
    """"token" has a ratio for each token, "sequence" one for a response (GSPO)."""
    surrogate: Literal["clip", "cispo"] = "clip"
    """"clip" is PPO's clipped surrogate, "cispo" clips the weight and keeps every gradient."""
    drop_equal: bool = False
    """Whether groups whose rewards are all equal are left out. They have no gradient but count in the average."""
    refill: Natural = 0
    """Further batches of prompts that are sampled at most to replace groups that were left out (DAPO's dynamic
    sampling)."""
    mask_truncated: bool = False
    """Whether responses without an end token are left out of the loss."""

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 2:
            raise UserError(
                f"stage {self.name}: samples must be at least 2; an advantage compares responses of a group"
            )
        if self.bnpo_rows is not None:
            if self.aggregation != "bnpo":
                raise UserError(f"stage {self.name}: bnpo_rows is for aggregation 'bnpo', not {self.aggregation!r}")
            if self.score_rows % self.bnpo_rows:
                raise UserError(
                    f"stage {self.name}: bnpo_rows {self.bnpo_rows} does not divide the {self.score_rows} responses "
                    "that are trained on at once (mini_batch over accumulate)"
                )

    @property
    def rollout_attempts(self) -> int:
        return 1 + self.refill

    def objective(self, model: Model, *, training: bool) -> Objective:
        from easylm_jax.objectives import policy_optimization

        return policy_optimization(
            model, temperature=self.temperature, clip_low=self.clip_low, clip_high=self.clip_high,
            dual_clip=self.dual_clip, aggregation=self.aggregation, constant=float(self.sampling.max_new_tokens),
            bnpo_rows=self.bnpo_rows, ratio=self.ratio, surrogate=self.surrogate, kl=self.kl, kl_kind=self.kl_kind,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineDPO(RL):
    """DPO on pairs of responses that the policy generates: the response of a prompt with the highest reward is chosen,
    that with the lowest is rejected.

    Prompts whose responses all have the same reward are skipped (spec tulu25 §4.5). `mini_batch` counts responses, so
    that an update has `mini_batch / samples` pairs at most.
    """

    algorithm: ClassVar[str] = "online_dpo"

    samples: int = 2
    """Responses to each prompt: the best becomes the chosen one, the worst the rejected one."""
    loss: Literal["dpo", "dpo_norm", "ipo", "simpo"] = "dpo"
    """The loss on a pair, a kind of `easylm_jax.objectives.preference_loss`."""
    beta: Positive = 0.1
    """How much a difference to the reference model counts: with a small beta the model may move further."""
    label_smoothing: Annotated[float, Bounds(low=0, below=0.5)] = 0.0
    """The probability with which the labels of pairs are taken to be swapped."""
    gamma: NonNegative | None = None
    """SimPO's margin; None for other losses."""

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 2:
            raise UserError(f"stage {self.name}: samples must be at least 2, for a chosen and a rejected response")
        if self.update_rows % self.samples:
            raise UserError(f"stage {self.name}: mini_batch must be a multiple of samples ({self.samples})")
        if self.sampler_correction not in (None, "off") or self.temperature != 1.0:
            raise UserError(
                f"stage {self.name}: DPO compares whole responses at temperature 1; set logprob_temperature to 1 and "
                "leave sampler_correction out"
            )

    @property
    def group_rows(self) -> int:
        return self.samples

    @property
    def correction(self) -> None:
        """None: the loss compares whole responses and has no importance weights of tokens."""

    def objective(self, model: Model, *, training: bool) -> Objective:
        from easylm_jax.objectives import preference_optimization

        return preference_optimization(
            model, self.loss, beta=self.beta, label_smoothing=self.label_smoothing, gamma=self.gamma,
        )  # fmt: skip
