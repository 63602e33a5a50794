"""Molmo, Tables 2 and 15: what of the model and its training counts, at 7B-D (arXiv 2409.17146).

Encoders, crops, overlap, layers of features, dropout, warm-up and clips, each against the default of `train_7b_d.py`.
Departs from the paper: dropout in the captions stage is of all tokens, where the paper's default is of response tokens
alone (its row "text-only"), so that our default is its row "off, on"; one crop is the small copy and one crop of the
whole; hints of length and pooling by stacking are not varied. SigLIP has 8 crops, which makes its tokens about as many
as CLIP's.
"""

from recipes.molmo import base, published
from recipes.molmo.ablations import Variant, data, fields, optimizer, recipe, seeing

GLOBAL = optimizer(clip=1.0, groups={"clip": "shared"})


def crops(train: int, **more: object) -> dict[str, object]:
    """Both stages with so many crops of a picture."""
    return {"captions": data(max_crops=train, **more), "mixture": data(max_crops=train, **more)}


VARIANTS = (
    Variant("SigLIP", **seeing(tower="siglip", max_crops=8), crops=8),
    Variant("DINOv2", **seeing(tower="dino")),
    Variant("MetaCLIP", **seeing(tower="metaclip")),
    Variant("4 crops", **crops(4), crops=12),
    Variant("36 crops", **crops(36, document_length=4096, row_crops=111)),
    Variant("no overlap", **seeing(margin=0)),
    Variant("one crop", **crops(1), crops=1),
    Variant("only the third last layer", **seeing(features=(-2,))),
    Variant("only the tenth last layer", **seeing(features=(-9,))),
    Variant("dropout in neither stage", mixture=fields(dropout=0.0)),
    Variant("dropout in both stages", captions=fields(dropout=0.1)),
    Variant("one warm-up", captions=fields(optimizer=base.optimizer(2e-5, 6e-6, 2e-4, (200, 200, 200)))),
    Variant("one clip", captions=GLOBAL, mixture=GLOBAL),
    Variant("one clip in fine-tuning", mixture=GLOBAL),
)


recipe = recipe(
    "molmo-table2", "Molmo, Table 2: the model", VARIANTS, published.captions(published.MODEL, "Tables 2 and 15"),
    published.means(published.MODEL, "Tables 2 and 15"),
)  # fmt: skip
