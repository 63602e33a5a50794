"""Tülu 3's stages on one model: SFT, DPO, PPO and GRPO as of Tülu 3 8B (arXiv 2411.15124, Tables 7, 11, 20 and 21).

Each stage starts from the same model, not from the stage before it, and PPO's value model is that model with a new
head. `easylm plan hf:OWNER/MODEL` puts a model in the place of Llama 3.1 8B and plans the four. For training, take the
recipes with a size in their name.

Departs from the paper: as `sft_8b`, `dpo_8b`, `rlvr_8b` and `grpo_8b`, whose settings these are.
"""

from easylm_jax.config import Recipe
from recipes.tulu3.base import MIXED, barely_falling, dpo, grpo, mixture, pairs, ppo, rlvr_prompts, sft

MODEL = "hf:meta-llama/Llama-3.1-8B"

recipe = Recipe(
    "tulu3-every-stage",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-64",  # 32 chips; 4 rows, 4 pairs, 7 responses, and 12 in micro-batches of 3 on each
    stages=(
        sft(
            init=MODEL,
            data=mixture(MODEL),
            examples=939_344,  # Table 7
            lr=5e-6,  # Table 11
            batch=128,  # Table 11
            remat="attention",
        ),
        dpo(
            init=MODEL,
            data=pairs("llama-3.1-tulu-3-8b-preference-mixture", MODEL, overlong="truncate"),
            examples=271_409,  # as in `dpo_8b`
            lr=5e-7,  # Table 20
            batch=128,  # Table 20
            remat="attention",
        ),
        ppo(
            "ppo",
            init=MODEL,
            value=MODEL,
            data=rlvr_prompts(MIXED, MODEL),
            lr=barely_falling(3e-7, 224),  # Table 21
            batch=224,  # docs/tulu3.md
            episodes=100_000,  # Table 21
            kl=0.05,  # Table 21
            remat="attention",
        ),
        grpo(
            "grpo",
            init=MODEL,
            data=rlvr_prompts(MIXED, MODEL),
            steps=2_000_000 // (48 * 16),  # as in `grpo_8b`
            accumulate=4,
            remat="attention",
        ),
    ),
)
