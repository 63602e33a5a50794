"""The two stages of Molmo (arXiv 2409.17146, Sections 3 and 4; Table 7 and Appendix A), for any of its sizes.

Pictures lie in a folder that `EASYLM_PIXMO` names (`data/pixmo` without it), with a JSONL file for each set in the form
of docs/molmo.md. PixMo is published as addresses of pictures, about a fifth of which are gone by now; a missing file is
skipped and counted.

Departs from the paper: rows hold several pictures, so that padding is not computed, and a step has as many tokens as
the paper's examples have on average; a fixed layout in place of wordings and hints that change with every epoch; rates
of the mixture are of rows and not of examples.
"""

import os

from easylm_jax.config import (
    SFT,
    AddVision,
    Checkpoints,
    Compute,
    DataSpec,
    Entry,
    Evaluate,
    OptimizerConfig,
    ParameterGroup,
    Source,
)
from models.config import VisionConfig
from models.families.molmo import with_ids
from models.registry import preset
from recipes.molmo import published
from recipes.tables import suite_table

FOLDER = os.environ.get("EASYLM_PIXMO", "data/pixmo")
FILES = {"pixmo_count": f"{FOLDER}/pixmo_count.jsonl"}  # benchmarks whose documents lie there
BASES = {
    "molmoe-1b": "hf:allenai/OLMoE-1B-7B-0924", "molmo-7b-o": "hf:allenai/OLMo-7B-1024-preview",
    "molmo-7b-d": "hf:Qwen/Qwen2-7B", "molmo-72b": "hf:Qwen/Qwen2-72B",
}  # fmt: skip
DOCUMENT = 2304  # tokens of an example: Appendix A

# Table 7: percent of the examples drawn. PixMo sets first, then academic ones.
MIXTURE = {
    "points": 28.8, "ask_model_anything": 3.8, "cap": 3.2, "point_explanations": 2.4,
    "count": 6.2, "cap_qa": 5.7, "clocks": 5.3,
    "docs_charts": 5.2, "docs_other": 4.0, "docs_tables": 3.3, "docs_diagrams": 1.9,
    "tally_qa": 3.9, "vqa2": 3.1, "android_control": 2.9, "a_okvqa": 2.8, "doc_qa": 2.1, "text_vqa": 2.0,
    "chart_qa": 1.8, "st_qa": 1.7, "info_qa": 1.6, "tabwmp": 1.6, "plot_qa": 1.5, "ai2_diagram": 1.3, "dv_qa": 1.1,
    "figure_qa": 1.1, "okvqa": 1.0, "science_qa": 0.8,
}  # fmt: skip

# Everything but the embeddings of the language model (released training code, scripts/train.py).
TRAINED = ("embed.new", "layers", "final_norm", "head", "vision", "connector")


def optimizer(llm: float, vit: float, connector: float, warmups: tuple[int, int, int]) -> OptimizerConfig:
    """AdamW with a rate, a warm-up and a clip for each component (Section 3.2; clipping apart is +0.5 cap F1)."""
    rates = [f"{rate:g} cosine to 10% warmup {steps} steps" for rate, steps in zip((llm, vit, connector), warmups,
                                                                                    strict=True)]  # fmt: skip
    groups = (
        ParameterGroup("vit", ("vision",), lr=rates[1], clip=1.0),
        ParameterGroup("connector", ("connector", "embed.new"), lr=rates[2], clip=1.0),
    )
    return OptimizerConfig(rates[0], b1=0.9, b2=0.95, eps=1e-6, weight_decay=0.0, groups=groups, trainable=TRAINED)


def start(model: str) -> AddVision:
    """The base language model with CLIP and a fresh connector; tokens of pictures have rows of their own."""
    return AddVision("start", init=BASES[model], vision=vision_of(model), tower="hf:openai/clip-vit-large-patch14-336")


def vision_of(model: str) -> VisionConfig:
    """What a new model of this size sees with: ids behind the rows of the embedding, where they are trained."""
    config = preset(model)
    assert config.vision is not None
    return with_ids(config.vision, config.vocab)


def captions(model: str, *, llm: float = 2e-5) -> SFT:
    """Stage 1: long captions and transcripts of PixMo-Cap with length hints, four epochs."""
    data = DataSpec(
        (Source(f"{FOLDER}/cap_transcripts/*.jsonl"),), BASES[model], 3 * DOCUMENT, kind="pictures",
        template="molmo_caption", vision=vision_of(model), document_length=DOCUMENT, row_crops=56, on_bad="skip",
    )  # fmt: skip
    return SFT(
        "captions",
        init="start",
        data=data,
        batch=32,  # about 128 pictures, as in the paper
        accumulate=2,  # a row at a time on each of 16 chips
        steps=22_300,
        optimizer=optimizer(llm, 6e-6, 2e-4, (2000, 2000, 200)),
        compute=Compute(dtype="bfloat16", remat="full"),
        checkpoints=Checkpoints(every=250, history=5000),
    )


def table(model: str) -> Evaluate:
    """Table 1: the eleven benchmarks, of the model after the mixture."""
    title = f"{model.replace('molmo', 'Molmo', 1)}: the eleven benchmarks"
    return suite_table(title, "molmo", (Entry("mixture", ("mixture",)),), published.TABLE_1[model], files=FILES)


def mixture(model: str, *, llm: float, seeing: float = 5e-6, steps: int = 30_000) -> SFT:
    """Stage 2: the fine-tuning mixture with style tags, 1/√n weights and points."""
    sources = tuple(Source(f"{FOLDER}/{name}/*.jsonl", weight=rate) for name, rate in MIXTURE.items())
    data = DataSpec(
        sources, BASES[model], 8192, kind="pictures", template="molmo", vision=vision_of(model),
        document_length=DOCUMENT, row_crops=72, annotation_weight="root", on_bad="skip",
    )  # fmt: skip
    return SFT(
        "mixture",
        init="captions",
        data=data,
        batch=48,  # about 256 examples, as in the paper
        accumulate=3,
        steps=steps,
        dropout=0.1,  # of residual branches; in stage 1 on response tokens alone, which is left out here
        optimizer=optimizer(llm, seeing, seeing, (200, 200, 200)),
        compute=Compute(dtype="bfloat16", remat="full"),
        checkpoints=Checkpoints(every=250, history=5000),
    )
