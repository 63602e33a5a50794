"""Stages that make a model of finished ones without training: an average, a mixture of experts, a model that sees."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

from easylm_jax.config.base import ModelUse, Stage, models_of
from easylm_jax.config.bounds import Bounds, Count
from models.config import DecoderConfig, Experts, VisionConfig
from models.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Average(Stage):
    """The average of the parameters of several models of one architecture: OLMo 2's soup (arXiv 2501.00656, §4.5).

    Sums are in float64. Optimisers are not averaged. The tokenizer and the template are those of the first model.
    """

    family: ClassVar[str] = "checkpoint"
    ingredients: tuple[str, ...]
    """At least two: stages of the recipe, `run:<folder>`, or `hf:<folder or hub name[@revision]>`."""

    def __post_init__(self):
        super().__post_init__()
        if len(self.ingredients) < 2:
            raise UserError(f"stage {self.name}: ingredients needs at least two, {len(self.ingredients)} given")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(models_of(*self.ingredients)))

    @property
    def compiles(self) -> bool:
        return False

    @property
    def derived_from(self) -> str:
        return self.ingredients[0]

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        return tuple(ModelUse("ingredients", name, "any") for name in self.ingredients)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfOneModel(Stage):
    """A checkpoint of another architecture that is computed from one model."""

    family: ClassVar[str] = "checkpoint"
    init: str
    """The model: a stage of the recipe, `run:<folder>`, or `hf:<folder or hub name>`."""

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(models_of(self.init))

    @property
    def compiles(self) -> bool:
        return False

    @property
    def derived_from(self) -> str:
        return self.init

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        return (ModelUse("init", self.init, "language"),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upcycle(OfOneModel):
    """A mixture of experts from a dense model (spec olmo §13.4; arXiv 2212.05055): every expert starts as the dense
    feed-forward layer, the routers from N(0, 0.02²). The optimiser starts anew."""

    experts: Count
    """Experts of each layer."""
    active: Count
    """Experts that compute a token."""
    noise: Annotated[float, Bounds(low=0, high=1)] = 0.0
    """The share of the experts' weights that are drawn anew from N(0, 0.02²). OLMoE's study tried 0.5 and found no
    gain."""
    keep_scale: bool = False
    """Whether the experts' outputs are scaled by experts / active, so that the mixture with near-uniform routers starts
    as the function of the dense model. Its weights are not renormalised, so that the sum is otherwise smaller by about
    that factor, which models with a norm on the output of sub-layers (OLMo 2) do not see."""

    def derived(self, config: DecoderConfig) -> DecoderConfig:
        if config.experts is not None:
            raise UserError(f"stage {self.name}: init {self.init} is a mixture of experts already; give a dense model")
        return config.replace(experts=Experts(self.experts, self.active))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddVision(OfOneModel):
    """A model that sees (Molmo, arXiv 2409.17146) from a language model and a vision transformer. The connector and the
    embeddings of pictures' tokens are fresh."""

    vision: VisionConfig
    """The vision transformer's shape, such as `preset("molmo-7b-d").vision`; its tokens' ids are those of the data."""
    tower: str | None = None
    """The vision transformer: `hf:<folder or hub name>` of CLIP, SigLIP, DINOv2 or MetaCLIP; None for a fresh one."""

    def __post_init__(self):
        super().__post_init__()
        if self.tower is not None and not self.tower.startswith("hf:"):
            raise UserError(f"stage {self.name}: tower {self.tower!r} must be hf:<folder or hub name>")

    def derived(self, config: DecoderConfig) -> DecoderConfig:
        if config.norm != "rms" or config.tie_embeddings or config.scalar_head or config.window is not None:
            what = "tied embeddings, a scalar head, windows or LayerNorm"
            raise UserError(f"stage {self.name}: no Molmo can be built on init {self.init}: it has {what}")
        return config.replace(family="molmo", vision=self.vision)
