"""What the ablations of Molmo-7B-D share (arXiv 2409.17146, Tables 2, 3 and 15): variants of the stages, and tables.

A variant trains again from the first stage that it changes. Captions are judged with cap F1 on `cap_f1.jsonl` of the
folder of pictures, by the judge that `EASYLM_JUDGE` names (the paper's judge and statements are not published), and
fine-tuned models are asked the eleven benchmarks; PixMo-Count is read from `pixmo_count.jsonl` there.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable

from easylm_jax.config import SFT, AddVision, Ask, Entry, Evaluate, Published, Recipe
from easylm_jax.evaluate import suites
from models.families.molmo import TOWERS, with_ids
from recipes.molmo import base

MODEL = "molmo-7b-d"
JUDGE = os.environ.get("EASYLM_JUDGE", "http://localhost:8000/v1#judge")
REPOSITORIES = {
    "siglip": "hf:google/siglip-so400m-patch14-384",
    "dino": "hf:facebook/dinov2-large",
    "metaclip": "hf:facebook/metaclip-l14-fullcc2.5b",
}  # spec molmo §4
BENCHMARKS = suites.load("molmo").benchmarks()
Change = Callable[[SFT], SFT]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of a table: what of the default is changed. `crops` is the most crops that its benchmarks show."""

    title: str
    start: AddVision | None = None
    captions: Change | None = None
    mixture: Change | None = None
    crops: int | None = None
    pretrained: bool = True  # whether there is a captions stage


DEFAULT = Variant("default")


def seeing(**changes: object) -> dict[str, object]:
    """`start` and both stages of a variant whose vision differs: a tower of `TOWERS`, or fields of the tower."""
    name = changes.pop("tower", None)
    default = base.vision_of(MODEL)
    vision = dataclasses.replace(default, **changes) if name is None else with_ids(
        dataclasses.replace(TOWERS[str(name)], connector_ffn=default.connector_ffn, **changes), default.start_id
    )  # fmt: skip
    start = dataclasses.replace(base.start(MODEL), vision=vision)
    if name is not None:
        start = dataclasses.replace(start, tower=REPOSITORIES[str(name)])
    return {"start": start, "captions": data(vision=vision), "mixture": data(vision=vision)}


def data(**changes: object) -> Change:
    """Fields of the data."""
    return lambda stage: dataclasses.replace(stage, data=dataclasses.replace(stage.data, **changes))


def fields(**changes: object) -> Change:
    """Fields of the stage."""
    return lambda stage: dataclasses.replace(stage, **changes)


def optimizer(**changes: object) -> Change:
    """Fields of the optimiser and, as `groups`, of all its groups of parameters."""
    inner: dict[str, object] = dict(changes.pop("groups", {}))  # type: ignore[call-overload]

    def changed(stage: SFT) -> SFT:
        groups = tuple(dataclasses.replace(group, **inner) for group in stage.optimizer.groups)
        return dataclasses.replace(stage, optimizer=dataclasses.replace(stage.optimizer, groups=groups, **changes))

    return changed


def recipe(name: str, title: str, variants: Iterable[Variant], f1: tuple[Published, ...],
           means: tuple[Published, ...]) -> Recipe:  # fmt: skip
    """The stages of the default and of all variants, the table of captions and that of the benchmarks."""
    stages: list = []
    captions, tuned = [], {}
    for variant in (DEFAULT, *variants):
        mark = "" if variant is DEFAULT else f"-{variant.title.lower().replace(' ', '-')}"
        start, pre = "start", "captions"
        if variant is DEFAULT or variant.start is not None:
            start = f"start{mark}"
            stages.append(dataclasses.replace(variant.start or base.start(MODEL), name=start))
        if variant is DEFAULT or ((variant.start or variant.captions) and variant.pretrained):
            pre = f"captions{mark}"
            stage = (variant.captions or fields())(base.captions(MODEL))
            stages.append(dataclasses.replace(stage, name=pre, init=start))
            captions.append(Entry(variant.title, (pre,)))
        if not variant.pretrained:
            pre = start
        stage = (variant.mixture or fields())(base.mixture(MODEL, llm=1e-5, seeing=5e-6))
        stages.append(dataclasses.replace(stage, name=f"mixture{mark}", init=pre))
        tuned.setdefault(variant.crops, []).append(Entry(variant.title, (f"mixture{mark}",)))
    judged = Ask("cap_f1", file=f"{base.FOLDER}/cap_f1.jsonl")
    stages.append(Evaluate("captions-table", title=f"{title}: captions", tasks=(), benchmarks=(judged,), judge=JUDGE,
                           entries=tuple(captions), published=f1))  # fmt: skip
    for crops, entries in tuned.items():
        asks = tuple(Ask(one, file=base.FILES.get(one), max_crops=crops) for one in BENCHMARKS)
        shown = {entry.method for entry in entries}
        stages.append(Evaluate(
            "table" if crops is None else f"table-{crops}-crops",
            title=title if crops is None else f"{title}, {crops} crops shown", tasks=(), benchmarks=asks,
            entries=tuple(entries), published=tuple(one for one in means if one.method in shown),
        ))  # fmt: skip
    return Recipe(name, mesh="fsdp=-1", pod="v5p-32", stages=tuple(stages))
