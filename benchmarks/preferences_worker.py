"""Our side of benchmarks/preferences.py: `reward_scores` of a reward model on the pairs."""

from __future__ import annotations

import collections
import json
import sys
import time
from pathlib import Path

from common import burst, serve, take_stdout

CHANNEL = take_stdout()

import jax  # noqa: E402 - after standard output is redirected

import models  # noqa: E402
from easylm_jax.decode.likelihood import reward_scores  # noqa: E402
from models.config import DecoderConfig  # noqa: E402


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    config = DecoderConfig(
        family="llama", context=spec["context"], norm_placement="pre", pad_id=0, scalar_head=True, **spec["shape"]
    )
    model = models.build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    Path(spec["weights"]).mkdir(exist_ok=True)
    models.save_hf(model, params, spec["weights"])  # the peer scores with the same model
    counts: collections.Counter[str] = collections.Counter()
    requests = [(prompt, answer) for prompt, *answers in spec["pairs"] for answer in answers]

    def score() -> float:
        counts.clear()
        return float(reward_scores(model, params, requests, counts=counts).mean(dtype="float64"))

    began = time.perf_counter()
    score()
    about = {
        "jax": jax.__version__, "platform": jax.default_backend(), "first_seconds": time.perf_counter() - began,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)), "read": counts["read"],
        "padding": counts["padding"] / counts.total(),
    }  # fmt: skip
    serve(about, {"burst": lambda steps: burst(score, steps)}, CHANNEL)


if __name__ == "__main__":
    main()
