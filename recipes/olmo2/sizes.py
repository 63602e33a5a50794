"""OLMo 2's base models: settings by size, and the stages of pre-training and mid-training (arXiv 2501.00656).

Numbers are from Table 1 and Section 3 of the paper; where it has none or differs from the runs, from the
configurations: allenai/OLMo configs/official-1124 and official-0425 (1B, 7B, 13B), allenai/OLMo-core
src/scripts/official/OLMo2 (32B).
"""

import dataclasses

from easylm_jax.config import (
    Average,
    Checkpoints,
    Compute,
    Entry,
    Evaluate,
    OptimizerConfig,
    Pretrain,
    Stage,
)
from recipes.olmo2 import data, published
from recipes.tables import suite_table, while_training


@dataclasses.dataclass(frozen=True)
class Size:
    """One column of Table 1. `batch` is in rows of 4096 tokens."""

    batch: int
    peak_lr: str
    warmup: str
    horizon: str  # where the cosine reaches 10 % of the peak; the runs stop earlier, at `steps`
    steps: int
    stage2_lr: str
    stage2_steps: dict[str, int]  # by token budget
    z_loss: float
    repetition_filter: bool
    skip_step: bool
    seed: int


# Warm-up of 1B, 7B and 13B: 8 388 608 000 tokens, which are 4000, 2000 and 1000 updates. The paper's text says 2000
# steps for 13B. Peak of 13B: 9e-4 (Table 1 and the launch script; the released configuration file still says 3e-4).
# z-loss: Table 1 says 1e-5, Section 3.3.3 says 1e-4, and the trainer of 1B, 7B and 13B always used 1e-4.
# Stage 2 starts with the learning rate at the end of stage 1: 1B, 7B and 13B as configured (7B slightly above the
# 6.1351e-5 of the cosine), 32B from its checkpoint, which is the cosine at update 721 901.
SIZES = {
    "1b": Size(
        batch=512, peak_lr="4e-4", warmup="8.388608B tokens", horizon="5T tokens", steps=1_907_359,  # 4.00T tokens
        stage2_lr="7.4487e-5", stage2_steps={"50B": 23_852},
        z_loss=1e-4, repetition_filter=True, skip_step=False, seed=6198,
    ),
    "7b": Size(
        batch=1024, peak_lr="3e-4", warmup="8.388608B tokens", horizon="5T tokens", steps=928_646,  # 3.90T: one epoch
        stage2_lr="6.1499e-5", stage2_steps={"50B": 11_931},
        z_loss=1e-4, repetition_filter=True, skip_step=False, seed=6198,
    ),
    "13b": Size(
        batch=2048, peak_lr="9e-4", warmup="8.388608B tokens", horizon="5T tokens", steps=596_057,  # 5.00T tokens
        stage2_lr="9e-5", stage2_steps={"100B": 11_931, "300B": 35_773},
        z_loss=1e-4, repetition_filter=True, skip_step=False, seed=6198,
    ),
    "32b": Size(
        batch=2048, peak_lr="6e-4", warmup="2000 steps", horizon="6.5T tokens", steps=721_901,  # 6.06T tokens
        stage2_lr="6.6232e-5", stage2_steps={"100B": 11_921, "300B": 35_763},
        z_loss=1e-5, repetition_filter=False, skip_step=True, seed=34521,
    ),
}  # fmt: skip


def stage1(size: str, *, accumulate: int, remat: str, tile_kib: int | None = None) -> Pretrain:
    """Pre-training on the web mix; `accumulate`, `remat` and `tile_kib` fit it to a pod and change no number."""
    s = SIZES[size]
    return Pretrain(
        "stage1",
        model=f"olmo2-{size}",
        data=data.olmo_mix(s.repetition_filter),
        batch=s.batch,
        accumulate=accumulate,
        steps=s.steps,
        seed=s.seed,
        z_loss=s.z_loss,
        optimizer=OptimizerConfig(
            f"{s.peak_lr} cosine to 10% warmup {s.warmup} horizon {s.horizon}",
            b1=0.9,  # Section 3: AdamW, eps 1e-8, embeddings not decayed
            b2=0.95,
            eps=1e-8,
            weight_decay=0.1,
            decay_embeddings=False,
            clip=1.0,
            skip_step=s.skip_step,
        ),
        compute=Compute(dtype="bfloat16", remat=remat, tile_kib=tile_kib),
        checkpoints=Checkpoints(every=250, history=1000),  # the intervals of the released checkpoints
        benchmarks=while_training(1000),  # as configured, of the benchmarks that are here (spec olmo §16)
    )


def stage2(stage1: Pretrain, size: str, budget: str, seed: int) -> Pretrain:
    """Mid-training: from stage 1 with its moments, linearly to zero, on a Dolmino mix; `seed` sets the data's order.

    Batch, decay, clip and z-loss stay those of stage 1 (Section 4).
    """
    s = SIZES[size]
    return dataclasses.replace(
        stage1,
        name=f"stage2-{budget.lower()}-seed{seed}",
        model=None,
        init=stage1.name,
        keep_moments=True,
        data=data.dolmino(budget, s.repetition_filter),
        steps=s.stage2_steps[budget],
        seed=seed,
        optimizer=dataclasses.replace(stage1.optimizer, lr=f"{s.stage2_lr} linear to 0"),
    )


def with_soup(stage1: Pretrain, *anneals: Pretrain) -> tuple[Stage, ...]:
    """The stages of mid-training, and the plain average of its ends (Section 4.5)."""
    return (stage1, *anneals, Average("soup", ingredients=tuple(stage.name for stage in anneals)))


def table_of_stage1(size: str) -> Evaluate:
    """Table 9's row of the model before mid-training. A recipe of stage 2 has a table of its own in the same run."""
    entries = (Entry("stage 1", ("stage1",)),)
    title = f"OLMo 2 {size.upper()}: after stage 1"
    return suite_table(title, "olmo2-base", entries, published.TABLE_9[size], name="stage1-table")


def table_of_stage2(size: str, stages: tuple[Stage, ...], final: str) -> Evaluate:
    """Table 9: the model before mid-training, the end `final`, and every anneal that it is the average of."""
    anneals = [stage.name for stage in stages if stage.trains and stage.name not in ("stage1", final)]
    entries = (
        Entry("stage 1", ("stage1",)),
        Entry("stage 2", (final,), over="stage 1"),
        *(Entry(name.removeprefix("stage2-"), (name,)) for name in anneals),
    )
    return suite_table(f"OLMo 2 {size.upper()}: base models", "olmo2-base", entries, published.TABLE_9[size])
