"""Supervised fine-tuning of Tülu 2 (arXiv 2311.10702, appendix on training), the initial models of Tülu 2.5.

326 154 conversations are 2548 updates per epoch. Each has its own row of 8192 tokens, twice the training length of
Llama 2, with unchanged rotary embeddings.
"""

from easylm_jax.config import SFT, Checkpoints, Compute, DataSpec, Entry, Evaluate, OptimizerConfig, Source
from easylm_jax.evaluate import tasks


def sft(*, init: str, lr: float, accumulate: int, remat: str) -> SFT:
    """Two epochs of the Tülu 2 mixture; the loss is the mean over the trained tokens of an update."""
    return SFT(
        "sft",
        init=init,
        data=DataSpec(
            (Source("hf:allenai/tulu-v2-sft-mixture"),),
            init,
            8192,
            kind="chat",
            template="tulu25",  # BOS first, contents stripped
            packing="none",
            on_bad="skip",  # conversations without trained tokens are dropped, as in the released code
            compat="tulu25",  # also trains the newline after a response that is not the last, as the released code did
        ),
        batch=128,
        accumulate=accumulate,
        epochs=2,
        examples=326_154,
        # Betas and clip: EasyLM's optimiser, which trained Tülu 2 and 2.5.
        optimizer=OptimizerConfig(f"{lr:g} linear to 0 warmup 3%", b1=0.9, b2=0.95, weight_decay=0.0, clip=1.0),
        compute=Compute(dtype="bfloat16", remat=remat),
        checkpoints=Checkpoints(when_busy="skip"),
    )


def table(title: str, tokenizer: str) -> Evaluate:
    """The model on GSM8K, which is the score, and on IFEval, as Tülu 2.5's policies (`recipes/tulu25/suites.py`)."""
    return Evaluate(
        "table",
        title=title,
        tasks=(tasks.gsm8k(tokenizer, "tulu25"), tasks.ifeval(tokenizer, "tulu25")),
        entries=(Entry("SFT", ("sft",)),),
        compute=Compute(dtype="bfloat16"),
        average=("GSM8K",),
    )
