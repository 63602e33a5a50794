"""The peer `hf`: `generate` of `transformers`' Molmo 2, as a worker of benchmarks/molmo.py.

`transformers` has no Molmo 1. Molmo 2 of the same sizes does the same work for a picture: a vision transformer over the
same crops, pooling attention over the same patches, and a decoder with as many layers, heads and channels; without
`mm_token_type_ids` its attention is causal as Molmo 1's. Weights are random. The questions about a picture are asked
one after another, each with its picture, as the public code does; the second argument "batch" asks them all at once.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import burst, serve, take_stdout

CHANNEL = take_stdout()

import numpy as np  # noqa: E402 - after standard output is redirected
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.models.molmo2 import modeling_molmo2 as molmo  # noqa: E402


def model_of(spec: dict[str, Any]) -> Any:
    """Molmo 2 of the sizes of `spec`, with random weights."""
    vision, text = spec["vision"], spec["text"]
    head = vision["width"] // vision["heads"]
    seen = {"hidden_size": vision["width"], "num_attention_heads": vision["heads"], "head_dim": head,
            "num_key_value_heads": vision["heads"]}  # fmt: skip
    config = transformers.Molmo2Config(
        vision_config={**seen, "intermediate_size": vision["ffn"], "num_hidden_layers": vision["layers"],
                       "image_size": [vision["image"]] * 2, "patch_size": vision["patch"], "hidden_act": "quick_gelu"},
        adapter_config={**seen, "vision_feature_layer": list(vision["features"]), "text_hidden_size": text["width"],
                        "intermediate_size": vision["connector_ffn"]},
        text_config={"hidden_size": text["width"], "num_hidden_layers": text["layers"],
                     "num_attention_heads": text["heads"], "num_key_value_heads": text["heads"],
                     "head_dim": text["width"] // text["heads"], "intermediate_size": text["ffn"],
                     "vocab_size": text["vocab"], "additional_vocab_size": vision["extra_rows"],
                     "max_position_embeddings": text["context"]},
        image_patch_id=vision["patch_id"], attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    return molmo.Molmo2ForConditionalGeneration(config).eval()


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    arrays = np.load(spec["arrays"])
    model = model_of(spec)
    pixels = torch.from_numpy(arrays["pixels"])
    pooling = torch.from_numpy(arrays["pooling"])
    grid = torch.from_numpy(arrays["grid"])
    groups = [spec["prompts"]] if sys.argv[2:] == ["batch"] else [[prompt] for prompt in spec["prompts"]]

    def seen(count: int) -> dict[str, torch.Tensor]:
        """The picture `count` times."""
        patches = pixels.shape[0] * pixels.shape[1]
        moved = [torch.where(pooling < 0, pooling, pooling + number * patches) for number in range(count)]
        return {"pixel_values": pixels.repeat(count, 1, 1), "image_token_pooling": torch.cat(moved),
                "image_grids": grid.repeat(count, 1)}  # fmt: skip

    def answer() -> float:
        with torch.inference_mode():
            for group in groups:
                ids = torch.tensor(group)
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), **seen(len(group)), do_sample=False,
                    max_new_tokens=spec["new"], eos_token_id=None, pad_token_id=0,
                )  # fmt: skip
                assert out.shape[1] == ids.shape[1] + spec["new"]
        return float(out[0, -1])

    began = time.perf_counter()
    answer()
    about = {
        "torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()), "first_seconds": time.perf_counter() - began,
    }  # fmt: skip
    serve(about, {"burst": lambda steps: burst(answer, steps)}, CHANNEL)


if __name__ == "__main__":
    main()
