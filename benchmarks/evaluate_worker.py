"""Our side of benchmarks/evaluate.py: `evaluate.loglikelihood` on the tokens of the questions."""

from __future__ import annotations

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
from easylm_jax.data import load_tokenizer  # noqa: E402
from easylm_jax.evaluate import loglikelihood  # noqa: E402
from easylm_jax.evaluate.asking import Encoder  # noqa: E402
from models.config import DecoderConfig  # noqa: E402


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    config = DecoderConfig(family="olmo2", context=spec["context"], qk_norm=True, eos_id=1, **spec["shape"])
    model = models.build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    models.save_hf(model, params, spec["weights"])  # the peer scores the same model
    encoder = Encoder(load_tokenizer(f"hf:{spec['weights']}"), None, add_bos=False)

    def score() -> float:
        pairs = [encoder.pair(context, "", option) for context, option in spec["questions"]]
        return sum(logprob for logprob, _ in loglikelihood(model, params, pairs))

    began = time.perf_counter()
    score()
    about = {
        "jax": jax.__version__, "platform": jax.default_backend(), "first_seconds": time.perf_counter() - began,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }  # fmt: skip
    serve(about, {"burst": lambda steps: burst(score, steps)}, CHANNEL)


if __name__ == "__main__":
    main()
