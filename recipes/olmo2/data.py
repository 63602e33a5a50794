"""The data of OLMo 2 (arXiv 2501.00656): the mix of stage 1, the Dolmino mixes of stage 2, conversations for SFT.

The mixes are seqio mixtures (`recipes/mixes.py` has their numbers). The rate of a source is its share of the rows in
training, here in billions of tokens. A source with fewer rows than its share is repeated, reshuffled.
"""

from easylm_jax.config import DataSpec, Source
from recipes import mixes

TOKENIZER = "hf:allenai/dolma2-tokenizer"
LENGTH = 4096  # Table 1


def olmo_mix(repetition_filter: bool) -> DataSpec:
    """Stage 1: OLMo 2 Mix 1124 (Table 4), 3.90T tokens."""
    return _pretraining(mixes.source("olmo_mix_1124"), repetition_filter)


def dolmino(budget: str, repetition_filter: bool) -> DataSpec:
    """Stage 2: the Dolmino mix of `budget` tokens ("50B", "100B" or "300B") that the runs' file lists give."""
    return _pretraining(mixes.source(f"dolmino_1124_{budget.lower()}"), repetition_filter)


def _pretraining(source: Source, repetition_filter: bool) -> DataSpec:
    return DataSpec(
        (source,),
        TOKENIZER,
        LENGTH,
        packing="concat",
        document_mask=False,  # tokens attend across the documents of a row, in both stages (configs/official-1124)
        repetition_filter=repetition_filter,  # 32 or more repeats of up to 13 tokens (Section 3.1)
        on_bad="skip",  # counted in the cache's manifest
    )


def tulu3_olmo2(mixture: str, template: str = "olmo") -> DataSpec:
    """SFT: one conversation a row, cut at 4096 tokens, loss on the assistant's turns (Section 5).

    `mixture` is a name of `mixes.CHATS`. `template` "olmo" puts BOS in front of the conversation, "tulu" (the released
    32B) does not.
    """
    return DataSpec(
        (mixes.source(mixture),),
        TOKENIZER,
        LENGTH,
        kind="chat",
        template=template,
        packing="none",
        on_bad="skip",  # conversations without trained tokens are dropped, as in the released code
    )
