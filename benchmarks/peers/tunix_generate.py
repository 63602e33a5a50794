"""The peer `tunix`: the sampler of Google's Tunix on its Llama, as a worker of benchmarks/decode.py.

Runs in `.peers/tunix`. The model has the shape asked for, but is Llama (norms before the sub-layers, no QK-norm): a
little less work than OLMo 2. The cache is just as long as prompt and completion, which is quickest there, and
top-p is 1, for which Tunix neither sorts nor truncates.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import burst, serve, take_stdout

CHANNEL = take_stdout()

import importlib.metadata  # noqa: E402 - after standard output is redirected

import jax  # noqa: E402
from flax import nnx  # noqa: E402
from tunix.generate import sampler as tunix_sampler  # noqa: E402
from tunix.models.llama3 import model as llama  # noqa: E402


class Numbers:
    """A tokenizer whose text is token ids with spaces between them."""

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int | None:
        return None

    def eos_id(self) -> int:
        return -1

    def pad_id(self) -> int:
        return -1


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    shape = spec["shape"]
    config = llama.ModelConfig(
        num_layers=shape["layers"], vocab_size=shape["vocab"], embed_dim=shape["width"], hidden_dim=shape["ffn"],
        num_heads=shape["heads"], head_dim=shape["width"] // shape["heads"], num_kv_heads=shape["heads"],
        rope_theta=500_000, norm_eps=1e-6,
    )  # fmt: skip
    cache = tunix_sampler.CacheConfig(spec["context"], config.num_layers, config.num_kv_heads, config.head_dim)
    sampler = tunix_sampler.Sampler(llama.Llama3(config, rngs=nnx.Rngs(0)), Numbers(), cache)
    texts, seeds = [" ".join(map(str, prompt)) for prompt in spec["prompts"]], itertools.count()

    def generate() -> float:
        out = sampler(
            texts, max_generation_steps=spec["new"], max_prompt_length=len(spec["prompts"][0]), eos_tokens=[-1],
            temperature=1.0, top_p=1.0, seed=next(seeds),
        )  # fmt: skip
        assert all(len(tokens) == spec["new"] for tokens in out.tokens), [len(tokens) for tokens in out.tokens]
        return float(out.tokens[0][-1])

    began = time.perf_counter()
    generate()
    about = {
        "tunix": importlib.metadata.version("google-tunix"), "jax": jax.__version__,
        "first_seconds": time.perf_counter() - began,
    }  # fmt: skip
    serve(about, {"burst": lambda steps: burst(generate, steps)}, CHANNEL)


if __name__ == "__main__":
    main()
