"""OLMo 2's micro-anneals: what a source of data is worth, tested cheaply (arXiv 2501.00656, Section 4.4, Table 12).

    EASYLM_INIT=run:runs/olmo2-7b/stage1 EASYLM_SOURCES=mine=maths/*.jsonl,other=hf:me/set \\
        easylm run recipes/olmo2/microanneals.py

From one checkpoint, each candidate is mixed with web text one to one and trained on linearly to zero, for as many steps
as one pass through it takes; the table has the held-out loss of each on web text and on GSM8K beside that of the
baseline, which anneals on web text alone. Without `EASYLM_INIT` the checkpoint is the released end of stage 1; without
`EASYLM_SOURCES` the candidates are the maths of the Dolmino mix and FLAN. `steps` of a stage is set for its tokens:
`math.steps=137` is the 576M tokens of the table's first row.

Departs from the paper: it measures MMLU and 200 problems of GSM8K after each run (`easylm eval`), not losses; the
released checkpoint has no moments, so the anneals from it begin with fresh ones.
"""

import dataclasses
import os

from easylm_jax.config import DataSpec, Entry, HeldOut, Losses, Pretrain, Recipe, Source
from models.errors import UserError
from recipes import mixes
from recipes.olmo2 import data
from recipes.olmo2.sizes import SIZES
from recipes.olmo2.stage1_7b import recipe as base

stage1 = base.stage("stage1")
assert isinstance(stage1, Pretrain)
INIT = os.environ.get("EASYLM_INIT", "hf:allenai/OLMo-2-1124-7B@stage1-step928646-tokens3896B")
SEED = 7201  # allenai/OLMo, configs/microannealing
TOKENS = 576_000_000  # of the first row of Table 12; a run of another size overrides its stage's steps
WEB = Source("seqio:dolmino_mix_1124_dclm_0.0323", module="recipes.seqio_mixtures")
CANDIDATES = {
    "math": Source("seqio:dolmino_mix_1124_math", module="recipes.seqio_mixtures"),
    "flan": Source("seqio:dolmino_mix_1124_flan", module="recipes.seqio_mixtures"),
}


def candidates() -> dict[str, Source]:
    """The sources to be tested, by name: those of `EASYLM_SOURCES` (name=path, separated by commas), or Dolmino's."""
    given = os.environ.get("EASYLM_SOURCES")
    if not given:
        return CANDIDATES
    pairs = [text.partition("=")[::2] for text in given.split(",")]
    if not all(name and path for name, path in pairs):
        raise UserError(f"EASYLM_SOURCES {given!r} must read name=path,name=path")
    return {name: Source(path) for name, path in pairs}


def text(*sources: Source) -> DataSpec:
    return dataclasses.replace(data.olmo_mix(True), sources=sources)


def anneal(name: str, *sources: Source) -> Pretrain:
    """A micro-anneal: 6.1499e-5 linearly to 0, batches of 1024, moments kept where the checkpoint has them."""
    return dataclasses.replace(
        stage1,
        name=name,
        model=None,
        init=INIT,
        keep_moments=INIT.startswith("run:"),  # a released model has none
        data=text(*sources),
        steps=TOKENS // (stage1.batch * data.LENGTH),
        seed=SEED,
        optimizer=dataclasses.replace(stage1.optimizer, lr=f"{SIZES['7b'].stage2_lr} linear to 0"),
    )


def weighted(source: Source) -> Source:
    return dataclasses.replace(source, weight=0.5)


anneals = [anneal("web", WEB), *(anneal(n, weighted(WEB), weighted(source)) for n, source in candidates().items())]
assert mixes.MIXES["dolmino_1124_50b"].parts[0].fraction == 0.0323  # the task that WEB names

recipe = Recipe(
    "olmo2-7b-microanneals",
    mesh=base.mesh,
    pod=base.pod,
    stages=(
        *anneals,
        Losses(
            "table",
            title="Micro-anneals: held-out loss",
            sets=(
                HeldOut("web", text(Source("hf:allenai/c4:validation", subset="en", limit=2000, streaming=True))),
                HeldOut("GSM8K", text(Source("hf:openai/gsm8k:test", subset="main", text_field="answer"))),
            ),
            entries=tuple(Entry(s.name, (s.name,), over=None if s.name == "web" else "web") for s in anneals),
            batch=1024,
            compute=stage1.compute,
        ),
    ),
)
