"""Pictures: how many a core prepares in a second, and questions about one picture with and without a shared prefix.

    python benchmarks/molmo.py
    python benchmarks/molmo.py --questions 8 --peer hf

The first is `models.molmo.image.tokenize` on noise of 640 × 480 as JPEG, decoding included, in one process. The second
generates greedy responses to several questions about one picture: `ours` computes the picture once, `unshared` is the
same engine that computes it for each question, as the public torch code does (`generate_from_batch` of one question at
a time has no cache to share). With `--peer hf`, `transformers`' Molmo 2 of the same sizes answers too, question by
question and in one batch; `peer` is the better of these (`benchmarks/peers/hf_molmo.py` says why it is Molmo 2).
Models are small and have random weights. The last line of standard output is JSON, in responses per second.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np  # noqa: I001
from common import ROOT, BenchmarkError, Worker, run_main  # puts the checkout on the path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/molmo.py --questions 8"
    )
    parser.add_argument("--pictures", type=int, default=30, help="pictures to prepare in a repeat (30)")
    parser.add_argument("--questions", type=int, default=8, help="questions about one picture (8)")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a response (8)")
    parser.add_argument("--repeats", type=int, default=3, help="measured repeats (3)")
    parser.add_argument("--size", choices=("tiny", "small"), default="small", help="the model of the second part")
    parser.add_argument("--peer", choices=("hf",), help="the codebase to compare with")
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


def question_model(size: str) -> tuple[Any, Any]:
    """The model of the second part, and a picture as it reads it."""
    import models
    from models.config import VisionConfig
    from models.families.molmo import with_ids
    from models.molmo.image import tokenize

    sizes = {"tiny": (48, 2, 2, 4), "small": (256, 4, 6, 8)}
    width, heads, layers, crops = sizes[size]
    vision = with_ids(VisionConfig(width=width, heads=heads, ffn=4 * width, layers=layers, features=(-1, -2),
                                   connector_ffn=2 * width, max_crops=crops), 512)  # fmt: skip
    config = models.DecoderConfig("molmo", layers=layers, width=width, heads=heads, ffn=3 * width, vocab=512,
                                  context=4096, vision=vision, norm_placement="pre")  # fmt: skip
    picture = tokenize(np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8), crops, vision)
    return models.build(config), picture


def asked(options: argparse.Namespace, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds for all questions about a picture of each way, measured in turn, and the model's shape."""
    import jax

    from easylm_jax import decode

    model, picture = question_model(options.size)
    params = model.init(jax.random.key(0))
    prompts = [[1, *picture.tokens.tolist(), *range(10 + i, 22 + i)] for i in range(options.questions)]
    engine = decode.Engine(model, slots=options.questions)
    how = {"max_new_tokens": options.tokens, "temperature": 0.0}
    ways: dict[str, Callable[[], float]] = {
        "ours": seconds_of(lambda: engine.generate(params, prompts, images=[picture] * len(prompts), **how)),
        "unshared": seconds_of(
            lambda: [engine.generate(params, [prompt], images=[picture], **how) for prompt in prompts]
        ),
    }
    with contextlib.ExitStack() as stack:
        if options.peer:
            spec = peer_files(folder, model, picture, prompts, options.tokens)
            for name, more in (("hf", ()), ("hf, one batch", ("batch",))):
                worker = stack.enter_context(
                    Worker(name, [*peer_command(), spec, *more], {"OMP_WAIT_POLICY": "passive"})
                )
                ways[name] = functools.partial(lambda worker: worker.ask("burst", steps=1)["seconds"], worker)
        for run in ways.values():
            run()  # compiles, and fills caches
        seconds = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, run in ways.items():
                seconds[name].append(run())
    config = model.config
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    shape = {"width": config.width, "layers": config.layers, "parameters": parameters, "crops": len(picture.crops),
             "picture_tokens": len(picture.tokens)}  # fmt: skip
    return {name: statistics.median(values) for name, values in seconds.items()}, shape


def seconds_of(run: Callable[[], Any]) -> Callable[[], float]:
    def timed() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return timed


def peer_command() -> list[str]:
    """The worker of the peer, in its own environment."""
    python = ROOT / ".peers" / "hf" / "bin" / "python"
    if not python.is_file():
        raise BenchmarkError("no environment .peers/hf; build it with benchmarks/setup_peers.sh hf")
    return [str(python), str(ROOT / "benchmarks" / "peers" / "hf_molmo.py")]


def peer_files(folder: Path, model: Any, picture: Any, prompts: list[list[int]], new: int) -> str:
    """Writes what the peer needs: sizes, prompts and the picture as it takes one; returns the file that names all."""
    from models.molmo import tower

    vision = model.config.vision
    rows, columns = picture.tiling  # the pooled grid of the crops together (spec molmo §3.6)
    side, inner = (vision.grid + 1) // 2, (vision.grid - 2 * vision.margin) // 2
    grid = np.array([[side, side, *(inner * n + vision.margin for n in (rows, columns))]])
    assert int(grid[0, 0] * grid[0, 1] + grid[0, 2] * grid[0, 3]) == len(picture.pooling)
    pixels = np.asarray(tower.normalised(vision, picture.crops, np.float32))
    np.savez(folder / "picture.npz", pixels=pixels, pooling=picture.pooling.astype(np.int64), grid=grid)
    text = {name: getattr(model.config, name) for name in ("layers", "width", "heads", "ffn", "vocab", "context")}
    spec = {"vision": dataclasses.asdict(vision), "text": text, "prompts": prompts, "new": new,
            "arrays": str(folder / "picture.npz")}  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec))
    return str(folder / "spec.json")


def main() -> None:
    options = arguments()
    load = os.getloadavg()[0]
    rate = prepared(options.pictures, options.repeats)
    print(f"{rate:.1f} pictures of 640 × 480 a second, one process", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        seconds, shape = asked(options, Path(folder))
    for name, value in seconds.items():
        print(f"{options.questions} questions, {name}: {value:.2f} s", file=sys.stderr)
    others = {name: value for name, value in seconds.items() if name.startswith("hf")} or seconds
    best = min((name for name in others if name != "ours"), key=others.__getitem__)
    rates = {name: round(options.questions / value, 3) for name, value in seconds.items()}
    print(json.dumps({
        "ours": rates["ours"], "peer": rates[best], "ratio": round(seconds[best] / seconds["ours"], 3),
        "unit": "responses/s", "setting": best, "rates": rates, "pictures_per_second": round(rate, 2),
        "load": round(load, 2), "config": {**vars(options), **shape},
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
