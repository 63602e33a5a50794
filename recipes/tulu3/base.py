"""Supervised fine-tuning as Tülu 3 does it (arXiv 2411.15124, Section 4 and Table 11); OLMo 2 does the same.

The mixture (Table 7) is published whole, 939 344 conversations with their duplicates and samples already drawn.
"""

from easylm_jax.config import SFT, Checkpoints, Compute, DataSpec, OptimizerConfig, Source

LENGTH = 4096  # Table 11


def mixture(tokenizer: str) -> DataSpec:
    """The Tülu 3 SFT mixture: one conversation a row, cut at 4096 tokens, loss on the assistant's turns, no BOS."""
    source = Source("hf:allenai/tulu-3-sft-mixture")
    return DataSpec(
        (source,),
        tokenizer,
        LENGTH,
        kind="chat",
        template="tulu",
        packing="none",
        on_bad="skip",  # conversations with nothing to train are dropped, as in the released code
    )


def sft(*, init: str, data: DataSpec, lr: float, batch: int, remat: str, accumulate: int = 1, seed: int = 0) -> SFT:
    """Two epochs; the loss is summed over tokens and divided by the number of conversations (Section 4)."""
    return SFT(
        "sft",
        init=init,
        data=data,
        batch=batch,
        accumulate=accumulate,
        epochs=2,
        seed=seed,
        reduction="sequence_sum",
        # Torch's own betas. The commands switch clipping off, but the libraries that ran them put 1.0 in its place.
        optimizer=OptimizerConfig(
            f"{lr:g} linear to 0 warmup 3% rounded down", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0
        ),
        compute=Compute(dtype="bfloat16", remat=remat),
        checkpoints=Checkpoints(when_busy="skip"),
    )
