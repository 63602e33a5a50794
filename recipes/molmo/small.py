"""Molmo (arXiv 2409.17146) on one CPU: from scratch to colours, counts and points in pictures that this project draws.

    easylm run recipes/molmo/small.py

A vision transformer, the connector and a decoder, 0.6 million parameters together, learn from 12,000 pictures with two
to five annotations each, packed behind one copy of the picture (Section 3), and then from 8,000 with more to point to:
a point is many tokens, and where it lies is learned after colours and shapes. The table asks held-out questions;
beside each score stands what the best answer without a look at the picture would score. Sizes, rates, steps, pictures
and the second part are this project's own; all else is as in the large recipes: crops, token layout, masks, the 1/√n
weights and the point format. Counts are asked without points, which would take most tokens of a row (the paper points
first).
"""

from easylm_jax.config import (
    SFT,
    Checkpoints,
    DataSpec,
    DecoderConfig,
    Entry,
    Evaluate,
    MakeData,
    OptimizerConfig,
    Recipe,
    Sampling,
    Source,
    Stage,
    Task,
    Tokenizer,
    Validation,
)  # fmt: skip
from models.config import VisionConfig

HERE = "recipes.molmo.small_data"
VOCABULARY = 384
SEQUENCE = 256  # tokens of a row: about two pictures with their annotations
ANSWER = 40  # tokens; the longest point has about 30

VISION = VisionConfig(
    image=36, patch=6, margin=2, width=64, heads=4, ffn=192, layers=3, features=(-1, -2), connector_ffn=192,
    max_crops=1, start_id=VOCABULARY, end_id=VOCABULARY + 1, patch_id=VOCABULARY + 2, column_id=VOCABULARY + 3,
    image_id=VOCABULARY + 4, extra_rows=8, init_std=0.1,
)  # fmt: skip
MODEL = DecoderConfig(
    family="molmo", layers=3, width=96, heads=4, ffn=256, vocab=VOCABULARY, context=SEQUENCE, vision=VISION,
    norm_placement="pre",
)  # fmt: skip
VERIFIERS = {"colour": "short_answer", "counting": "count", "pointing": "points_f1", "chart": "short_answer"}


def pictures(file: str) -> DataSpec:
    return DataSpec(
        (Source(f"stage:{file}"),), "stage:tokenizer", SEQUENCE, kind="pictures", template="molmo", vision=VISION,
        annotation_weight="root",
    )  # fmt: skip


def questions(task: str) -> DataSpec:
    return DataSpec(
        (Source(f"stage:questions/{task}.jsonl"),), "stage:tokenizer", 128, kind="prompts", template="molmo",
        vision=VISION,
    )  # fmt: skip


def model_stages(data: str, sft: str, points: str, pointing: str) -> tuple[Stage, ...]:
    """The stages that train the model: the data and the training of both parts have these names."""
    return (
        MakeData(data, function=f"{HERE}:make", arguments={"pictures": 12_000}, seed=1),
        Tokenizer("tokenizer", sources=(Source(f"stage:{data}/texts.jsonl"),), vocab_size=VOCABULARY),
        SFT(
            sft,
            model=MODEL,
            data=pictures(f"{data}/train.jsonl"),
            validation=Validation(pictures(f"{data}/validation.jsonl"), every=250),
            batch=16,
            steps=1_200,
            optimizer=OptimizerConfig("3e-3 cosine to 10% warmup 50 steps", weight_decay=0.0),
            checkpoints=Checkpoints(every=250),
        ),
        MakeData(points, function=f"{HERE}:make_points", arguments={"pictures": 8_000}, seed=1),
        SFT(
            pointing,
            init=sft,
            data=pictures(f"{points}/train.jsonl"),
            batch=16,
            steps=1_500,
            optimizer=OptimizerConfig("2e-3 cosine to 10% warmup 20 steps", weight_decay=0.0),
            checkpoints=Checkpoints(every=250),
        ),
    )


recipe = Recipe(
    "molmo-small",
    stages=(
        *model_stages("data", "sft", "points", "pointing"),
        MakeData("questions", function=f"{HERE}:make_questions", arguments={"count": 2_000}, seed=1),
        Evaluate(
            "table",
            title="Held-out pictures: a model of 0.6 million parameters",
            tasks=tuple(
                Task(
                    task, questions(task), verifier, Sampling(ANSWER, temperature=0.0, slots=64),
                    also=((f"{task}, blind", f"{HERE}:blind"),),
                )
                for task, verifier in VERIFIERS.items()
            ),
            entries=(Entry("captions and counts", ("sft",)), Entry("then points", ("pointing",))),
        ),
    ),
)  # fmt: skip
