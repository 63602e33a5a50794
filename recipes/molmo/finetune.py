"""Fine-tuning Molmo (arXiv 2409.17146, Section 4) on a folder of pictures with a JSONL of one's own.

    easylm run recipes/molmo/finetune.py         # shown on blood cells and groceries, from small.py's model, on one CPU
    EASYLM_PICTURES=my/records.jsonl EASYLM_MODEL=hf:allenai/Molmo-7B-D-0924 easylm run recipes/molmo/finetune.py
    EASYLM_PICTURES=my/records.jsonl EASYLM_MODEL=runs/molmo-small/pointing easylm run recipes/molmo/finetune.py

The records are those of docs/molmo.md: questions, captions or points about a picture. Every fifth picture is held out,
and a table shows what the model scores on it beside the best blind response (`recipes/molmo/held_out.py`). The model is
a released one, or a stage of a run on pictures; without `EASYLM_MODEL` it is trained first, as in
`recipes/molmo/small.py`. Groups and rates of a released model are those of the paper's fine-tuning (Table 10); those of
a small one are this project's own.
"""

import os
from pathlib import Path
from typing import Any

from easylm_jax.config import (
    SFT,
    Compute,
    DataSpec,
    Entry,
    Evaluate,
    MakeData,
    OptimizerConfig,
    Recipe,
    Sampling,
    Source,
    Task,
    fields,
)  # fmt: skip
from models import reading
from models.config import VisionConfig
from models.errors import UserError
from models.registry import preset
from recipes.molmo import held_out, small
from recipes.molmo.base import optimizer

RECORDS = os.environ.get("EASYLM_PICTURES")
MODEL = os.environ.get("EASYLM_MODEL")
LIKE = os.environ.get("EASYLM_MODEL_LIKE", "molmo-7b-d")  # the preset whose tokens and crops a released model has
CROPS = 6  # of a small model: blood cells of 640 × 480 become 2 × 3 crops, 60 × 48 pixels


def run_of(folder: Path) -> tuple[str, VisionConfig]:
    """The tokenizer of a run's stage, and what its model sees with."""
    try:
        data = reading.read_json(folder / "config.json", dict[str, Any])["stage"]["data"]
        vision = fields.decode(VisionConfig, {k: v for k, v in data["vision"].items() if k != "class"})
    except (KeyError, TypeError):
        raise UserError(f"{folder} is no stage that was trained on pictures; give one as EASYLM_MODEL") from None
    name = data["tokenizer"].removeprefix("stage:")
    return data["tokenizer"] if name == data["tokenizer"] else f"sp:{folder.parent / name}/tokenizer.model", vision


def data_of(file: str, tokenizer: str, vision: VisionConfig, kind: str, length: int, crops: int | None) -> DataSpec:
    """Pictures to train on, or questions about them."""
    trained = {"annotation_weight": "root", "on_bad": "skip"} if kind == "pictures" else {}
    return DataSpec((Source(f"stage:data/{file}"),), tokenizer, length, kind=kind, template="molmo", vision=vision,
                    max_crops=crops, **trained)  # fmt: skip


def tasks(tokenizer: str, vision: VisionConfig, length: int, crops: int | None, answer: int) -> tuple[Task, ...]:
    """The questions about held-out pictures, with the score of the best blind response beside each."""
    names = held_out.tasks_of(held_out.read(RECORDS)) if RECORDS else held_out.VERIFIERS
    if not names:
        raise UserError(f"{RECORDS}: its held-out pictures have no answers and no points; nothing could be asked")
    return tuple(
        Task(
            name, data_of(f"{name}.jsonl", tokenizer, vision, "prompts", length - answer, crops),
            held_out.VERIFIERS[name], Sampling(answer, temperature=0.0, slots=16),
            also=((f"{name}, blind", "recipes.molmo.small_data:blind"),),
        )
        for name in names
    )  # fmt: skip


def stages() -> tuple:
    """Data, fine-tuning and the table; without a model, the stages of a small one first."""
    how: dict[str, Any]
    before: tuple = ()
    length, crops, answer = small.SEQUENCE, CROPS, 160
    how = {"batch": 8, "steps": 300, "optimizer": OptimizerConfig("1e-3 cosine to 10% warmup 20 steps",
                                                                 weight_decay=0.0)}  # fmt: skip
    if MODEL is None:
        before = small.model_stages("drawn", "seeing", "points", "pointing")
        init, tokenizer, vision = "pointing", "stage:tokenizer", small.VISION
    elif MODEL.startswith("hf:"):
        init, tokenizer, vision, length, crops, answer = MODEL, MODEL, preset(LIKE).vision, 4096, None, 192
        how = {"batch": 8, "epochs": 3, "optimizer": optimizer(1e-5, 5e-6, 5e-6, (20, 20, 20)),
               "compute": Compute(dtype="bfloat16", remat="full")}  # fmt: skip
    else:
        folder = Path(MODEL.removeprefix("run:"))
        init, (tokenizer, vision) = f"run:{folder}", run_of(folder)
    made = MakeData("data", function="recipes.molmo.held_out:make", arguments={"records": RECORDS}) if RECORDS else (
        MakeData("data", function="recipes.molmo.real_pictures:make")
    )  # fmt: skip
    trained = data_of("train.jsonl", tokenizer, vision, "pictures", length, crops)
    return (
        *before, made, SFT("sft", init=init, data=trained, **how),
        Evaluate("table", title="Held-out pictures", tasks=tasks(tokenizer, vision, length, crops, answer),
                 entries=(Entry("fine-tuned", ("sft",)),)),
    )  # fmt: skip


recipe = Recipe("molmo-finetune", stages=stages())
