"""Tülu 3 8B's preference data from its prompts (arXiv 2411.15124, Section 5, Tables 15 and 38), and DPO on it

    easylm run recipes/tulu3/preferences_8b.py --only prompts

The parts of Table 15 for 8B: 271,409 pairs in the published mixture (`recipes/tulu3/dpo_8b.py` trains on that one).
`recipes/tulu3/preference_data.py` says what departs from the paper. Personas are those of PersonaHub.
"""

from easylm_jax.config import Entry, Recipe, SelectPrompts
from recipes.tulu3 import preference_data as parts
from recipes.tulu3 import published
from recipes.tulu3.base import dpo, table

recipe = Recipe(
    "tulu3-8b-preferences",
    pod="v5p-64",  # 32 chips, as dpo_8b
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",
    stages=(
        parts.prompts(*parts.OFF_POLICY),
        parts.responses("responses"),
        parts.ratings("rate", "responses"),
        parts.pairs("pairs", "rate"),
        SelectPrompts("prompts-on", parts=parts.ON_POLICY),
        parts.responses("responses-on", own=True, source="prompts-on/prompts.jsonl"),
        parts.ratings("rate-on", "responses-on"),
        parts.pairs("pairs-on", "rate-on", policy="on"),
        parts.persona_instructions(),
        dpo(init=parts.POLICY, data=parts.data("pairs", "pairs-on", "persona-if"), lr=5e-7, remat="attention"),
        table(
            "Tülu 3 8B: DPO on preference data of one's own making",
            (Entry("SFT", (parts.POLICY,)), Entry("DPO", ("dpo",), over="SFT")),
            published.TABLE_6,
            parts.POLICY,
        ),
    ),
)
