"""Fine-tuning Molmo (arXiv 2409.17146, Section 4) on a folder of pictures with a JSONL of one's own.

    easylm run recipes/molmo/finetune.py                     # shown on the blood cells of BCCD, on one CPU
    EASYLM_PICTURES=my/records.jsonl EASYLM_MODEL=hf:allenai/Molmo-7B-D-0924 easylm run recipes/molmo/finetune.py

The records are those of docs/molmo.md: questions, captions or points about a picture. Without `EASYLM_PICTURES` the
blood cells are counted and pointed at (`recipes/molmo/blood_cells.py`), by a small model from scratch; the last fifth
of the pictures is held out. With a model of one's own, groups and rates are those of the paper's fine-tuning.
"""

import os

from easylm_jax.config import (
    SFT,
    Compute,
    DataSpec,
    DecoderConfig,
    Entry,
    Evaluate,
    MakeData,
    OptimizerConfig,
    Recipe,
    Sampling,
    Source,
    Task,
    Tokenizer,
)  # fmt: skip
from models.config import VisionConfig
from models.registry import preset
from recipes.molmo.base import optimizer

RECORDS = os.environ.get("EASYLM_PICTURES")
MODEL = os.environ.get("EASYLM_MODEL")
LIKE = os.environ.get("EASYLM_MODEL_LIKE", "molmo-7b-d")  # the preset whose tokens and crops the model has
HERE = "recipes.molmo.blood_cells"
VOCABULARY = 384

SMALL_VISION = VisionConfig(
    image=96, patch=8, margin=2, width=64, heads=4, ffn=192, layers=3, features=(-1, -2), connector_ffn=192,
    max_crops=2, start_id=VOCABULARY, end_id=VOCABULARY + 1, patch_id=VOCABULARY + 2, column_id=VOCABULARY + 3,
    image_id=VOCABULARY + 4, extra_rows=8, init_std=0.1,
)  # fmt: skip
SMALL = DecoderConfig(
    family="molmo", layers=3, width=96, heads=4, ffn=256, vocab=VOCABULARY, context=1024, vision=SMALL_VISION,
    norm_placement="pre",
)  # fmt: skip


def own() -> tuple:
    """Fine-tuning of a model of one's own on records of one's own."""
    vision = preset(LIKE).vision
    data = DataSpec(
        (Source(RECORDS or ""),), MODEL or "", 4096, kind="pictures", template="molmo", vision=vision,
        annotation_weight="root", on_bad="skip",
    )  # fmt: skip
    return (
        SFT("sft", init=MODEL, data=data, batch=8, epochs=3, optimizer=optimizer(1e-5, 5e-6, 5e-6, (20, 20, 20)),
            compute=Compute(dtype="bfloat16", remat="full")),
    )  # fmt: skip


def shown() -> tuple:
    """The blood cells: counting and pointing."""

    def questions(task: str) -> DataSpec:
        return DataSpec((Source(f"stage:data/{task}.jsonl"),), "stage:tokenizer", 512, kind="prompts",
                        template="molmo", vision=SMALL_VISION)  # fmt: skip

    data = DataSpec((Source("stage:data/train.jsonl"),), "stage:tokenizer", 1024, kind="pictures", template="molmo",
                    vision=SMALL_VISION, annotation_weight="root")  # fmt: skip
    tasks = {"counting": "count", "pointing": "points_f1"}
    return (
        MakeData("data", function=f"{HERE}:make", seed=1),
        Tokenizer("tokenizer", sources=(Source("stage:data/texts.jsonl"),), vocab_size=VOCABULARY),
        SFT("sft", model=SMALL, data=data, batch=8, steps=400,
            optimizer=OptimizerConfig("2e-3 cosine to 10% warmup 20 steps", weight_decay=0.0)),
        Evaluate(
            "table", title="Blood cells, held-out pictures",
            tasks=tuple(
                Task(task, questions(task), verifier, Sampling(256, temperature=0.0, slots=16),
                     also=((f"{task}, blind", "recipes.molmo.small_data:blind"),))
                for task, verifier in tasks.items()
            ),
            entries=(Entry("small model", ("sft",)),),
        ),
    )  # fmt: skip


recipe = Recipe("molmo-finetune", stages=own() if RECORDS else shown())
