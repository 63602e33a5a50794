"""The data of OLMo 2 (arXiv 2501.00656): the mix of stage 1, the Dolmino mixes of stage 2, conversations for SFT.

The weight of a source is its share of the rows in training, here in billions of tokens. A source with fewer rows than
its share is repeated, reshuffled.
"""

from easylm_jax.config import DataSpec, Source

TOKENIZER = "hf:allenai/dolma2-tokenizer"
LENGTH = 4096  # Table 1


def olmo_mix(repetition_filter: bool) -> DataSpec:
    """Stage 1: OLMo 2 Mix 1124 (Table 4), 3.90T tokens."""
    tokens = {
        "dclm": 3710.0,  # DCLM-Baseline
        "starcoder": 83.0,
        "pes2o": 58.6,
        "arxiv": 20.8,
        "open-web-math": 12.2,
        "algebraic-stack": 11.8,
        "wiki": 3.7,  # Wikipedia and Wikibooks
    }
    sources = [Source("hf:allenai/olmo-mix-1124", subset=name, weight=weight) for name, weight in tokens.items()]
    return _pretraining(sources, repetition_filter)


# Stage 2, Dolmino Mix 1124: (fraction of the source's documents, billions of tokens in the mix).
# Both are from the file lists of the runs (allenai/OLMo, configs/official-1124, stage 2).
# Table 13 has the same 50B mix; its maths shares at 100B and 300B (17.5 % and 10.8 %, not 22.0 % and 13.7 %) and its
# Wikipedia share at 100B do not follow from its own source percentages. Repetition follows from the weights.
DOLMINO = {
    #                   50B              100B             300B
    "dclm":          ((0.0323, 24.31), (0.0685, 51.47), (0.2078, 156.26)),  # top 7 % by quality, 752B tokens
    "flan":          ((0.50, 8.54),    (1.0, 17.08),    (1.0, 34.16)),
    "pes2o":         ((0.0515, 3.01),  (0.167, 9.76),   (1.0, 58.55)),
    "wiki":          ((1.0, 3.66),     (1.0, 7.32),     (1.0, 14.64)),
    "stackexchange": ((1.0, 1.26),     (1.0, 2.52),     (1.0, 5.04)),
    "math":          ((1.0, 10.69),    (1.0, 24.79),    (1.0, 42.77)),
}  # fmt: skip
BUDGETS = ("50B", "100B", "300B")


def dolmino(budget: str, repetition_filter: bool) -> DataSpec:
    """Stage 2: a Dolmino mix of `budget` tokens ("50B", "100B" or "300B"; Tables 5 and 13)."""
    column = BUDGETS.index(budget)
    sources = []
    for name, cells in DOLMINO.items():
        share, tokens = cells[column]
        fraction = share if share < 1 else None
        sources.append(Source("hf:allenai/dolmino-mix-1124", subset=name, weight=tokens, fraction=fraction))
    return _pretraining(sources, repetition_filter)


def _pretraining(sources: list[Source], repetition_filter: bool) -> DataSpec:
    return DataSpec(
        tuple(sources),
        TOKENIZER,
        LENGTH,
        packing="concat",
        document_mask=False,  # tokens attend across the documents of a row, in both stages (configs/official-1124)
        repetition_filter=repetition_filter,  # 32 or more repeats of up to 13 tokens (Section 3.1)
        on_bad="skip",  # counted in the cache's manifest
    )


def tulu3_olmo2(mixture: str, template: str = "olmo") -> DataSpec:
    """SFT: one conversation a row, cut at 4096 tokens, loss on the assistant's turns (Section 5).

    `template` "olmo" puts BOS in front of the conversation, "tulu" (the released 32B) does not.
    """
    return DataSpec(
        (Source(f"hf:allenai/{mixture}"),),
        TOKENIZER,
        LENGTH,
        kind="chat",
        template=template,
        packing="none",
        on_bad="skip",  # conversations without trained tokens are dropped, as in the released code
    )
