"""Pictures: how many a core prepares in a second, and questions about one picture with and without a shared prefix.

    python benchmarks/molmo.py
    python benchmarks/molmo.py --questions 8 --pictures 50

The first is `models.molmo.image.tokenize` on noise of 640 × 480 as JPEG, decoding included, in one process. The second
generates greedy responses to several questions about one picture: `ours` computes the picture once, `peer` once for
each question, as the public torch code does (`generate_from_batch` of one question at a time has no cache to share).
Both run the same small model here. The last line of standard output is JSON, in responses per second.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np  # noqa: I001
from common import run_main  # puts the checkout on the path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/molmo.py --questions 8"
    )
    parser.add_argument("--pictures", type=int, default=30, help="pictures to prepare in a repeat (30)")
    parser.add_argument("--questions", type=int, default=8, help="questions about one picture (8)")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a response (8)")
    parser.add_argument("--repeats", type=int, default=3, help="measured repeats (3)")
    parser.add_argument("--size", choices=("tiny", "small"), default="small", help="the model of the second part")
    options = parser.parse_args()
    if min(options.pictures, options.questions, options.tokens, options.repeats) < 1:
        parser.error("pictures, questions, tokens and repeats must be at least 1")
    return options


def prepared(count: int, repeats: int) -> float:
    """Pictures a second."""
    from PIL import Image

    from models.molmo.image import tokenize

    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((640, 480)).save(file, "JPEG")
    return count / median_seconds(lambda: [tokenize(file.getvalue()) for _ in range(count)], repeats)


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    run()  # compiles, and fills caches
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def asked(options: argparse.Namespace) -> tuple[float, float, dict[str, Any]]:
    """Seconds for all questions about a picture, with a shared prefix and without, and the model's shape."""
    import dataclasses

    import jax

    import models
    from easylm_jax import decode
    from models.config import VisionConfig
    from models.families.molmo import with_ids
    from models.molmo.image import tokenize

    sizes = {"tiny": (48, 2, 2, 4), "small": (256, 4, 6, 8)}
    width, heads, layers, crops = sizes[options.size]
    vision = with_ids(VisionConfig(width=width, heads=heads, ffn=4 * width, layers=layers, features=(-1, -2),
                                   connector_ffn=2 * width, max_crops=crops), 512)  # fmt: skip
    config = models.DecoderConfig("molmo", layers=layers, width=width, heads=heads, ffn=3 * width, vocab=512,
                                  context=4096, vision=vision, norm_placement="pre")  # fmt: skip
    model = models.build(config)
    params = model.init(jax.random.key(0))
    picture = tokenize(np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8), crops, vision)
    prompts = [[1, *picture.tokens.tolist(), *range(10 + i, 22 + i)] for i in range(options.questions)]
    engine = decode.Engine(model, slots=options.questions)
    how = {"max_new_tokens": options.tokens, "temperature": 0.0}
    ours = median_seconds(
        lambda: engine.generate(params, prompts, images=[picture] * len(prompts), **how), options.repeats
    )
    peer = median_seconds(
        lambda: [engine.generate(params, [prompt], images=[picture], **how) for prompt in prompts], options.repeats
    )
    shape = {"width": width, "layers": layers, "crops": len(picture.crops), "vision": dataclasses.asdict(vision)}
    return ours, peer, shape


def main() -> None:
    options = arguments()
    load = os.getloadavg()[0]
    rate = prepared(options.pictures, options.repeats)
    print(f"{rate:.1f} pictures of 640 × 480 a second, one process", file=sys.stderr)
    ours, peer, shape = asked(options)
    print(f"{options.questions} questions: {ours:.2f} s with one prefix, {peer:.2f} s without", file=sys.stderr)
    print(json.dumps({
        "ours": round(options.questions / ours, 3), "peer": round(options.questions / peer, 3),
        "ratio": round(peer / ours, 3), "unit": "responses/s",
        "pictures_per_second": round(rate, 2), "load": round(load, 2), "config": {**vars(options), **shape},
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
