"""Writes dense_logits.npz: what `transformers` computes for the tiny models of tests/tiny_models.py.

    python tests/golden/make_dense_goldens.py

Needs the `parity` extra. The weights are not stored: they are a hash of their indices. For each case the file holds the
logits [1, 23, V] of one row of tokens, as float32.
"""

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tiny_models import CASES, random_params, random_tokens  # noqa: E402

import models  # noqa: E402


@torch.no_grad()
def reference_logits(name: str) -> np.ndarray:
    model = models.build(CASES[name])
    with tempfile.TemporaryDirectory() as folder:
        models.save_hf(model, random_params(model), folder)
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return reference(torch.as_tensor(random_tokens((1, 23)).astype(np.int64))).logits.numpy()


if __name__ == "__main__":
    arrays = {name: reference_logits(name) for name in CASES}
    arrays["versions"] = np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}"])
    np.savez_compressed(HERE / "dense_logits.npz", **arrays)
