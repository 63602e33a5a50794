"""Published durations of the papers' runs, printed beside the projections for TPU pods (`docs/pods.md`).

The papers used other hardware, so their hours and ours are not directly comparable.
"""

from __future__ import annotations

from easylm_jax.plan.pods import PublishedDuration

_TULU25 = "the paper's step of PPO at 13B, 7 minutes on a v3-256 (arXiv 2406.09279)"
_TULU3 = "arXiv 2411.15124, Table 11"
_RLVR = "arXiv 2411.15124, Section 6; allenai/open-instruct, docs/tulu3.md"
_OLMO2 = "allenai/open-instruct, docs/olmo2.md"

DURATIONS = (
    *(
        PublishedDuration(f"tulu25/{recipe}", stage, "7 min a step on v3-256", _TULU25)
        for recipe, stage in (
            ("table2_ppo_against_dpo", "ppo-rm-13b-uf"),
            ("table3_reward_models", "ppo-rm-13b-uf"),
            ("compat_13b", "ppo-rm-13b-uf-compat"),
        )
    ),
    PublishedDuration("tulu3/sft_8b", "sft", "6 h on 32 H100 (192)", _TULU3),
    PublishedDuration("tulu3/sft_70b", "sft", "50 h on 64 H100 (3,200)", _TULU3),
    PublishedDuration("tulu3/dpo_8b", "dpo", "10 h on 8 H100 (80)", "arXiv 2411.15124, Table 20"),
    PublishedDuration("tulu3/dpo_70b", "dpo", "19 h on 64 H100 (1,216)", "arXiv 2411.15124, Table 20"),
    PublishedDuration("tulu3/rm_8b", "rm", "9 h on 8 H100 (72)", "arXiv 2411.15124, Section 4"),
    PublishedDuration("tulu3/rlvr_8b", "ppo", "65 h on 8 H100 (520)", _RLVR),
    PublishedDuration("tulu3/rlvr_70b", "ppo", "60 h on 48 H100 (2,880)", _RLVR),
    PublishedDuration("olmo2/sft_1b", "sft", "9 h on 8 H100 (72)", _OLMO2),
    PublishedDuration("olmo2/dpo_1b", "dpo", "2 h on 8 H100 (16)", _OLMO2),
    PublishedDuration("olmo2/rlvr_1b", "mixed", "43 h on 16 H100 (688)", _OLMO2),
    PublishedDuration("olmo2/rlvr_1b", "math", "43 h on 16 H100 (688)", _OLMO2),
)
