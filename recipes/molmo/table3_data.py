"""Molmo, Table 3: what of the data counts, at 7B-D (arXiv 2409.17146).

The number of captions, and the fine-tuning mixture without some of its sets. Departs from the paper: captions by GPT-4o
or of ShareGPT4V and raw transcripts are not compared, since their sets are not published with PixMo.
"""

import dataclasses

from easylm_jax.config import SFT
from recipes.molmo import published
from recipes.molmo.ablations import Variant, recipe
from recipes.molmo.base import FOLDER, MIXTURE

POINTING = ("points", "count", "point_explanations")
DOCUMENTS = tuple(name for name in MIXTURE if name.startswith("docs_"))
ACADEMIC = tuple(MIXTURE)[tuple(MIXTURE).index("tally_qa") :]


def first(captions: int):
    """The first so many pictures with captions."""

    def changed(stage: SFT) -> SFT:
        (source,) = stage.data.sources
        data = dataclasses.replace(stage.data, sources=(dataclasses.replace(source, limit=captions),))
        return dataclasses.replace(stage, data=data, steps=max(1, round((stage.steps or 0) * captions / 712_000)))

    return changed


def only(*names: str):
    """The mixture of these sets alone, at their rates."""

    def changed(stage: SFT) -> SFT:
        kept = tuple(one for one in stage.data.sources if one.path.removeprefix(f"{FOLDER}/").split("/")[0] in names)
        return dataclasses.replace(stage, data=dataclasses.replace(stage.data, sources=kept))

    return changed


def without(*names: str):
    """The mixture without these sets."""
    return only(*(name for name in MIXTURE if name not in names))


VARIANTS = (
    Variant("no captions", pretrained=False),
    *(Variant(f"{thousand}k captions", captions=first(1000 * thousand)) for thousand in (89, 178, 356)),
    Variant("academic sets alone", mixture=only(*ACADEMIC)),
    Variant("academic sets and documents", mixture=only(*ACADEMIC, *DOCUMENTS)),
    Variant("without ask model anything", mixture=without("ask_model_anything")),
    Variant("without caption questions", mixture=without("cap_qa")),
    Variant("without documents", mixture=without(*DOCUMENTS)),
    Variant("without clocks", mixture=without("clocks")),
    Variant("without pointing", mixture=without(*POINTING)),
)

recipe = recipe(
    "molmo-table3", "Molmo, Table 3: the data", VARIANTS, published.captions(published.DATA, "Table 3"),
    published.means(published.DATA, "Table 3"),
)  # fmt: skip
