"""The configuration of an optimiser, of its guard against outlying updates, and of LoRA adapters."""

from __future__ import annotations

import dataclasses

from easylm_jax.config.schedule import read_schedule
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """`targets` name the kernels that get an adapter, by patterns (`models.trees.matches`): `attn.q`, `mlp.*`.

    `dropout` is the chance that an input feature of a target is left out of its adapter for one step. It is drawn for
    the whole batch (the adapter is merged into the weights, where single tokens cannot be told apart).
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ("attn.q", "attn.v")
    dropout: float = 0.0

    def __post_init__(self):
        if not (isinstance(self.rank, int) and self.rank > 0):
            raise UserError(f"lora: rank {self.rank!r} must be a positive whole number")
        if not self.alpha > 0:
            raise UserError(f"lora: alpha {self.alpha!r} must be positive")
        if isinstance(self.targets, str) or not self.targets:
            raise UserError(f"lora: targets {self.targets!r} must be a tuple of patterns, such as ('attn.q', 'attn.v')")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora: dropout {self.dropout!r} must be at least 0 and below 1")


_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class SkipStep:
    """Skip an update whose loss or gradient norm stands out (OLMo-core's SkipStepAdamW).

    The last `window` values before this update are remembered. Once they and the current one make at least
    `min_values`, the update is skipped when its loss or its gradient norm (before clipping) lies more than `sigma`
    sample standard deviations above their mean. Values of skipped updates are remembered too, so that a lasting change
    of level is accepted after a few updates; values that are not finite never are.
    """

    window: int = 128
    min_values: int = 64
    sigma: float = 6.0

    def __post_init__(self):
        if not (isinstance(self.window, int) and isinstance(self.min_values, int)):
            raise UserError("skip_step: window and min_values are whole numbers of updates")
        # Two earlier values are the fewest that have a sample deviation.
        if not 3 <= self.min_values <= self.window + 1:
            raise UserError(
                f"skip_step: min_values {self.min_values} must lie between 3 and window + 1 ({self.window + 1})"
            )
        if not self.sigma > 0:
            raise UserError(f"skip_step: sigma {self.sigma} must be positive")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as a recipe describes it. The defaults are OLMo 2's (arXiv 2501.00656, section 3).

    `lr` is a schedule (`easylm_jax.train.schedule`), or a number for a constant rate. `weight_decay` is decoupled and
    multiplied by the rate; it spares embedding tables unless `decay_embeddings` (OLMo 1 and OLMoE decay them), and
    norms and biases only if `decay_norms_and_biases` is off (Tülu 2.5). `clip` bounds the global 2-norm of the
    gradient. `skip_step` is `True` for OLMo 3's guard, or a `SkipStep`; an update whose loss or gradient is not finite
    is skipped either way. `abort_after` such updates in a row end the run. `moment_dtype` is the first moment's type
    and `second_moment_dtype` the second's; arithmetic is float32 whatever they are. `trainable` names what is trained,
    by patterns (`models.trees.match`); all other parameters are frozen, keep no moments, and are not decayed.
    `update_norm` reports the norm of each change too, which costs about one more pass over the parameters. With
    `offload` the moments lie in the host's memory, and come to the devices for the update alone.
    """

    lr: str | float
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    decay_norms_and_biases: bool = True
    clip: float | None = 1.0
    skip_step: SkipStep | bool | None = None
    abort_after: int | None = 20
    moment_dtype: str = "float32"
    second_moment_dtype: str = "float32"
    trainable: tuple[str, ...] = ("*",)
    update_norm: bool = False
    offload: bool = False

    def __post_init__(self):
        read_schedule(self.lr)
        if isinstance(self.skip_step, bool):
            object.__setattr__(self, "skip_step", SkipStep() if self.skip_step else None)
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer: {name} {getattr(self, name)} must be at least 0 and below 1")
        if not self.eps > 0:
            raise UserError(f"optimizer: eps {self.eps} must be positive")
        if not self.weight_decay >= 0:
            raise UserError(f"optimizer: weight_decay {self.weight_decay} must not be negative")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"optimizer: clip {self.clip} must be positive, or None for no clipping")
        if self.abort_after is not None and self.abort_after < 1:
            raise UserError(f"optimizer: abort_after {self.abort_after} must be at least 1, or None to go on for ever")
        for name in ("moment_dtype", "second_moment_dtype"):
            if getattr(self, name) not in _DTYPES:
                raise UserError(f"optimizer: {name} {getattr(self, name)!r} must be one of {', '.join(_DTYPES)}")
        # bfloat16 steps are 0.4-0.8 % of a value: a slower average would round back to where it was and never fall.
        if self.second_moment_dtype == "bfloat16" and self.b2 > 0.99:
            raise UserError(f"optimizer: a second moment in bfloat16 cannot follow b2 {self.b2}; use b2 up to 0.99")
        if isinstance(self.trainable, str) or not self.trainable:
            raise UserError(f"optimizer: trainable {self.trainable!r} must be a tuple of patterns, such as ('head',)")
