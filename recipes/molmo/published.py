"""Published numbers of Molmo (arXiv 2409.17146), which reports print beside ours: means of the eleven benchmarks, and
cap F1 after the captions stage, both in percent. All are of Molmo-7B-D."""

from easylm_jax.config import Published
from recipes.tables import of_suite

# Tables 2 and 15: rows that `table2_model.py` has.
MODEL = {
    "default": (54.1, 76.9), "SigLIP": (54.4, 77.1), "DINOv2": (53.2, 75.6), "MetaCLIP": (54.1, 77.2),
    "4 crops": (52.0, 74.1), "36 crops": (54.0, 77.2), "no overlap": (53.4, 75.7), "one crop": (46.7, 62.8),
    "only the third last layer": (53.7, 76.6), "only the tenth last layer": (52.5, 76.3),
    "dropout in neither stage": (53.1, 74.6), "dropout in both stages": (53.7, 77.0),
    "one warm-up": (53.7, 76.9), "one clip": (53.6, 76.9),
    "one clip in fine-tuning": (54.1, 76.9),
}  # fmt: skip

# Table 3: means of the eleven benchmarks, with cap F1 where captions differ.
DATA = {
    "default": (54.1, 76.9), "no captions": (None, 74.9), "89k captions": (49.6, 75.5), "178k captions": (51.6, 76.3),
    "356k captions": (52.6, 76.2), "academic sets alone": (None, 72.5), "academic sets and documents": (None, 74.0),
    "without ask model anything": (None, 76.8), "without caption questions": (None, 77.0),
    "without documents": (None, 75.8), "without clocks": (None, 76.9), "without pointing": (None, 76.2),
}  # fmt: skip


# Table 1: the mean and the columns of the suite "molmo".
_TABLE_1 = {
    "molmoe-1b": (68.6, 86.4, 78.0, 83.9, 77.7, 53.9, 78.8, 60.4, 34.9, 34.0, 87.2, 79.6),
    "molmo-7b-o": (74.6, 90.7, 80.4, 85.3, 90.8, 70.0, 80.4, 67.5, 39.3, 44.5, 89.0, 83.3),
    "molmo-7b-d": (77.3, 93.2, 84.1, 85.6, 92.2, 72.6, 81.7, 70.7, 45.3, 51.6, 88.5, 84.8),
    "molmo-72b": (81.2, 96.3, 87.3, 86.5, 93.5, 81.9, 83.1, 75.2, 54.1, 58.6, 91.2, 85.2),
}
TABLE_1 = {
    model: of_suite("molmo", {"mixture": row}, "arXiv 2409.17146, Table 1") for model, row in _TABLE_1.items()
}  # fmt: skip


def captions(rows: dict[str, tuple[float | None, float]], table: str) -> tuple[Published, ...]:
    """Cap F1 of the rows that have one."""
    return tuple(Published(name, "cap_f1", f1, f"arXiv 2409.17146, {table}") for name, (f1, _) in rows.items()
                 if f1 is not None)  # fmt: skip


def means(rows: dict[str, tuple[float | None, float]], table: str) -> tuple[Published, ...]:
    """The means of the eleven benchmarks."""
    return tuple(Published(name, "score", mean, f"arXiv 2409.17146, {table}") for name, (_, mean) in rows.items())
