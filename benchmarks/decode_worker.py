"""Our side of benchmarks/decode.py: the engine of easylm_jax, with as many slots as there are prompts."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

from common import burst, serve, take_stdout

from easylm_jax.runtime.host_memory import keep_freed_memory

CHANNEL = take_stdout()
keep_freed_memory()  # as `easylm run` does

import jax  # noqa: E402 - after standard output is redirected

import models  # noqa: E402
from easylm_jax.decode import Engine  # noqa: E402
from models.config import DecoderConfig  # noqa: E402


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    model = models.build(DecoderConfig(family="olmo2", context=spec["context"], qk_norm=True, **spec["shape"]))
    params = jax.jit(model.init)(jax.random.key(0))
    if spec["weights"]:  # a peer starts from the same weights
        models.save_hf(model, params, spec["weights"])
    engine, seeds = Engine(model, slots=len(spec["prompts"])), itertools.count()

    def generate() -> float:
        out = engine.generate(params, spec["prompts"], max_new_tokens=spec["new"], seed=next(seeds))
        assert (out.lengths == spec["new"]).all()
        return float(out.logprobs.mean())

    began = time.perf_counter()
    generate()
    about = {
        "jax": jax.__version__, "platform": jax.default_backend(), "first_seconds": time.perf_counter() - began,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }  # fmt: skip
    serve(about, {"burst": lambda steps: burst(generate, steps)}, CHANNEL)


if __name__ == "__main__":
    main()
