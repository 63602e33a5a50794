"""Published numbers of Tülu 3 (arXiv 2411.15124, Tables 5 and 6), which reports print beside ours."""

from __future__ import annotations

from easylm_jax.config import Published

COLUMNS = (
    "Average", "MMLU", "PopQA", "TruthfulQA", "BBH", "DROP", "MATH", "GSM8K", "HumanEval", "HumanEval+", "IFEval",
    "AlpacaEval 2", "Safety",
)  # fmt: skip
_8B = {
    "SFT": (60.6, 65.9, 29.3, 46.8, 69.7, 61.3, 31.5, 76.2, 86.2, 81.4, 72.8, 12.4, 93.1),
    "DPO": (64.7, 68.7, 29.3, 56.1, 68.7, 62.5, 42.0, 84.3, 83.9, 78.6, 81.1, 33.5, 87.2),
    "RLVR": (65.1, 68.2, 29.1, 55.0, 69.0, 62.6, 43.7, 87.6, 83.9, 79.2, 82.4, 34.5, 85.5),
    "Llama 3.1 8B Instruct": (62.9, 71.2, 20.2, 55.1, 71.9, 61.5, 42.5, 83.4, 86.3, 82.9, 80.6, 24.2, 75.2),
    "Qwen 2.5 7B Instruct": (66.5, 76.6, 18.1, 63.1, 70.2, 54.4, 69.9, 83.8, 93.1, 89.7, 74.7, 29.0, 75.0),
}
_70B = {
    "SFT": (72.6, 78.9, 48.6, 55.7, 82.6, 77.2, 53.7, 91.1, 92.9, 87.3, 82.1, 26.3, 94.4),
    "DPO": (76.2, 83.3, 46.3, 67.9, 84.8, 74.1, 62.3, 93.5, 92.4, 88.4, 82.6, 49.6, 89.0),
    "RLVR": (76.2, 83.1, 46.5, 67.6, 85.0, 74.3, 63.0, 93.5, 92.4, 88.0, 83.2, 49.8, 88.3),
    "Llama 3.1 70B Instruct": (74.1, 85.3, 46.4, 66.8, 83.0, 77.0, 56.4, 93.7, 93.6, 89.5, 88.0, 33.4, 76.5),
    "Qwen 2.5 72B Instruct": (72.8, 85.5, 30.6, 69.9, 80.4, 34.2, 75.9, 89.5, 94.0, 90.8, 87.6, 47.7, 87.0),
}


def rows(table: dict[str, tuple[float, ...]], columns: tuple[str, ...], source: str) -> tuple[Published, ...]:
    """The cells of a table whose rows have all columns."""
    return tuple(
        Published(method, column, value, source)
        for method, values in table.items()
        for column, value in zip(columns, values, strict=True)
    )


TABLE_6 = rows(_8B, COLUMNS, "arXiv 2411.15124, Table 6")
TABLE_5 = rows(_70B, COLUMNS, "arXiv 2411.15124, Table 5")
