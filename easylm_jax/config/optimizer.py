"""The configuration of an optimiser, of its groups of parameters and its guard, and of LoRA adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from easylm_jax.config import fields
from easylm_jax.config.bounds import BelowOne, Count, NonNegative, Positive
from easylm_jax.config.schedule import read_schedule
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter (LoRA) on some kernels, merged into the weights for each step."""

    rank: Count
    """The rank r of the adapter's two matrices."""
    alpha: Positive
    """The adapter is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("attn.q", "attn.v")
    """The kernels that get an adapter, by patterns (`models.trees.matches`), such as `attn.q` and `mlp.*`."""
    dropout: BelowOne = 0.0
    """Probability that an input feature of a target is left out of its adapter for one step. It is drawn for the whole
    batch: the adapter is merged into the weights, where single tokens cannot be told apart."""

    def __post_init__(self):
        if isinstance(self.targets, str) or not self.targets:
            raise UserError(f"lora: targets {self.targets!r} must be a tuple of patterns, such as ('attn.q', 'attn.v')")
        fields.check_types(self, "lora")


_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class SkipStep:
    """Skip an update whose loss or gradient norm stands out (OLMo-core's SkipStepAdamW).

    Once the last `window` values and the current one make at least `min_values`, the update is skipped when its loss or
    its gradient norm (before clipping) lies more than `sigma` sample standard deviations above their mean. Values of
    skipped updates are remembered too, so that a lasting change of level is accepted after a few updates; values that
    are not finite never are.
    """

    window: int = 128
    """Updates whose losses and gradient norms are remembered."""
    min_values: int = 64
    """Values that must be remembered before an update can be skipped."""
    sigma: Positive = 6.0
    """Sample standard deviations above the mean from which a loss or a gradient norm stands out."""

    def __post_init__(self):
        fields.check_types(self, "skip_step")
        # Two earlier values are the fewest that have a sample deviation.
        if not 3 <= self.min_values <= self.window + 1:
            raise UserError(
                f"skip_step: min_values {self.min_values} must lie between 3 and window + 1 ({self.window + 1})"
            )


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate, a weight decay or a clip of their own; the algorithm is the same for all.

    Parameters in no group follow the optimiser's own settings.
    """

    name: str
    """A word that names the group in metrics and checkpoints."""
    patterns: tuple[str, ...]
    """The parameters of the group (`models.trees.match`), such as `("embed", "head")`. A parameter belongs to one group
    at most."""
    lr: str | float | None = None
    """A schedule, warm-up included; None for the optimiser's."""
    weight_decay: NonNegative | None = None
    """The decay of every parameter of the group, embedding tables and norms too; None leaves the optimiser's with its
    exceptions."""
    clip: Positive | Literal["shared"] | None = "shared"
    """Bounds the 2-norm of the group's own gradient; None leaves it as it is, "shared" puts the group under the
    optimiser's clip."""

    def __post_init__(self):
        what = f"optimizer group {self.name!r}"
        if not (isinstance(self.name, str) and self.name.isidentifier()):
            raise UserError(f"{what}: a name is one word of letters, digits and underscores, such as 'embeddings'")
        _check_patterns(f"{what}: patterns", self.patterns)
        if self.lr is not None:
            read_schedule(self.lr)
        if isinstance(self.clip, str) and self.clip != "shared":
            raise UserError(f"{what}: clip {self.clip!r} must be a number, None for no clipping, or 'shared'")
        fields.check_types(self, what)
        if (self.lr, self.weight_decay, self.clip) == (None, None, "shared"):
            raise UserError(f"{what}: it changes nothing; give it an lr, a weight_decay or a clip")


Option = str | int | float | bool | None


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser as a recipe describes it. The defaults are OLMo 2's AdamW (arXiv 2501.00656, section 3).

    An algorithm that has no `b1`, `b2`, `eps` or moments refuses a value that is not the default.
    """

    lr: str | float
    """The learning rate: a number, or a schedule such as "2e-5 linear to 0 warmup 3%" (docs/optimizers.md)."""
    b1: BelowOne = 0.9
    """Decay of the first moment, of algorithms that have one."""
    b2: BelowOne = 0.95
    """Decay of the second moment, of algorithms that have one."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay; it is multiplied by the rate."""
    decay_embeddings: bool = False
    """Whether embedding tables are decayed too, as in OLMo 1 and OLMoE."""
    decay_norms_and_biases: bool = True
    """Whether norms and biases are decayed; Tülu 2.5 does not."""
    clip: Positive | None = 1.0
    """Upper bound of the 2-norm of the gradient; None for none."""
    skip_step: SkipStep | bool | None = None
    """True for OLMo 3's guard, which skips updates that stand out, or a `SkipStep`. An update whose loss or gradient is
    not finite is skipped either way."""
    abort_after: Count | None = 20
    """So many skipped updates in a row that were not finite end the run; None goes on for ever."""
    moment_dtype: str = "float32"
    """The type of the first moment, "float32" or "bfloat16"; arithmetic is float32."""
    second_moment_dtype: str = "float32"
    """The type of the second moment, "float32" or "bfloat16"."""
    trainable: tuple[str, ...] = ("*",)
    """What is trained, by patterns (`models.trees.match`). Other parameters are frozen, keep no moments and are not
    decayed."""
    update_norm: bool = False
    """Whether the norm of each change is reported too, at the cost of a pass over the parameters."""
    offload: bool = False
    """Whether the moments lie in the host's memory and come to the devices for the update alone."""
    name: str = fields.added_later("adamw")
    """The algorithm: adamw, lion, adafactor, muon or sgd (`easylm_jax.train.algorithms.OPTIMIZERS`)."""
    options: Mapping[str, Option] | tuple[tuple[str, Option], ...] = fields.added_later(())
    """Options of one algorithm alone, such as `{"nesterov": True}`; on the command line `nesterov=true`."""
    groups: tuple[ParameterGroup, ...] = fields.added_later(())
    """Parameters with a rate, a decay or a clip of their own."""

    def __post_init__(self):
        read_schedule(self.lr)
        object.__setattr__(self, "options", _pairs(self.options))
        object.__setattr__(self, "groups", tuple(self.groups))
        names = [group.name for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"optimizer: two groups are called {name!r}")
        if isinstance(self.skip_step, bool):
            object.__setattr__(self, "skip_step", SkipStep() if self.skip_step else None)
        for name in ("moment_dtype", "second_moment_dtype"):
            if getattr(self, name) not in _DTYPES:
                raise UserError(f"optimizer: {name} {getattr(self, name)!r} must be one of {', '.join(_DTYPES)}")
        # bfloat16 steps are 0.4-0.8 % of a value: a slower average would round back to where it was and never fall.
        if self.second_moment_dtype == "bfloat16" and self.b2 > 0.99:
            raise UserError(f"optimizer: a second moment in bfloat16 cannot follow b2 {self.b2}; use b2 up to 0.99")
        _check_patterns("optimizer: trainable", self.trainable)
        fields.check_types(self, "optimizer")


def _check_patterns(what: str, patterns: tuple[str, ...]) -> None:
    if isinstance(patterns, str) or not patterns:
        raise UserError(f"{what} {patterns!r} must be a tuple of patterns, such as ('head',)")


def _pairs(options: Mapping[str, Option] | tuple) -> tuple[tuple[str, Option], ...]:
    """Options as pairs of a name and a value, from a mapping, from pairs, or from texts such as `nesterov=true`."""
    pairs = {}
    for item in options.items() if isinstance(options, Mapping) else options:
        item = item[0] if isinstance(item, tuple) and len(item) == 1 else item  # as the command line gives it
        if isinstance(item, str) and "=" in item:
            name, _, text = item.partition("=")
            item = (name.strip(), fields.parse(Option, text.strip(), f"optimizer.options.{name.strip()}"))
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)):
            raise UserError(f"optimizer: options {options!r} must be names with values, such as {{'nesterov': True}}")
        pairs[item[0]] = item[1]
    return tuple(sorted(pairs.items()))
