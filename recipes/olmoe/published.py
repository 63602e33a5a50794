"""Published numbers of OLMoE (arXiv 2409.02060): the base model (Table 4) and its adaptation (Table 5), which reports
print beside ours."""

from __future__ import annotations

from recipes.tulu3.published import rows

# Six columns of the suite "olmes".
TABLE_4 = rows(
    {"stage 2": (54.1, 80.0, 62.1, 84.2, 79.8, 70.2)},
    ("MMLU", "HellaSwag", "ARC-Challenge", "ARC-Easy", "PIQA", "WinoGrande"),
    "arXiv 2409.02060, Table 4",
)

COLUMNS = ("MMLU", "GSM8K", "BBH", "HumanEval", "AlpacaEval 1", "XSTest", "IFEval", "Average")
TABLE_5 = rows(
    {
        "SFT": (51.4, 40.5, 38.0, 51.6, 69.2, 84.1, 43.3, 54.0),
        "DPO": (51.9, 45.5, 37.0, 54.8, 84.0, 82.6, 48.1, 57.7),
        "KTO": (51.2, 45.5, 34.1, 57.1, 81.6, 86.6, 47.5, 57.7),
    },
    COLUMNS,
    "arXiv 2409.02060, Tables 5 and 7",
)
