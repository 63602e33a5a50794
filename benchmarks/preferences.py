"""Answers scored by a reward model on this machine, in real tokens per second, beside a padded transformers loop.

    python benchmarks/preferences.py --peer hf
    python benchmarks/preferences.py --pairs 1000 --peer hf --batches 1,8,32

Both sides get the token ids of the same pairs: a prompt and two answers of mixed length, two sequences a pair, in the
same order. Ours is `decode.likelihood.reward_scores`, which benches of preferences use: it reads a prompt once for both
answers, and its scores do not depend on the batch. The peer is the loop that public runners use: whole sequences in
their order, in batches that are padded to the longest one, through `AutoModelForSequenceClassification`; the best of
several batch sizes is reported. A prompt counts in both of its sequences on both sides. The scores are compared. The
last line of standard output is JSON, with real tokens per second; `padding` is the padded share of what a side reads.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    BenchmarkError,
    Worker,
    json_line,
    kept,
    machine,
    median_load,
    run_main,
    spread,
    take_turns,
)  # fmt: skip

# A Llama, so that transformers has its classifier; "tiny" is for testing this script.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "width": 32, "ffn": 64, "heads": 2, "vocab": 512},
    "0.7m": {"layers": 2, "width": 128, "ffn": 384, "heads": 4, "vocab": 2048},
    "5m": {"layers": 4, "width": 256, "ffn": 1024, "heads": 4, "vocab": 2048},
}
CONTEXT = 1024
FIRST = 8  # ids below it are control tokens


def pairs(vocab: int, count: int) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, answer, answer) as ids: log-normal lengths with medians of 60 and 120 tokens, as chats have them."""
    draw = random.Random(0)

    def ids(median: float, spread: float, most: int) -> list[int]:
        length = min(most, max(2, round(median * draw.lognormvariate(0, spread))))
        return [draw.randrange(FIRST, vocab) for _ in range(length)]

    return [(ids(60, 0.8, 400), ids(120, 0.9, 600), ids(120, 0.9, 600)) for _ in range(count)]


def peer_commands(name: str, spec: str, batches: list[int], busy: bool) -> list[tuple[str, list[str], dict[str, str]]]:
    """(name, command, environment) of each setting of the peer; torch's threads wait asleep on a busy machine."""
    python = ROOT / ".peers" / name / "bin" / "python"
    if not python.is_file():
        raise BenchmarkError(f"no environment .peers/{name}; build it with benchmarks/setup_peers.sh {name}")
    script = str(ROOT / "benchmarks" / "peers" / "hf_reward.py")
    environment = {"OMP_WAIT_POLICY": "passive"} if busy else {}
    return [
        (f"transformers, batches of {size}", [str(python), script, spec, str(size)], environment) for size in batches
    ]


def padding(lengths: list[int], batch: int) -> float:
    """The share of padding among the tokens of batches that are padded to their longest sequence."""
    groups = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    return 1 - sum(lengths) / sum(max(group) * len(group) for group in groups)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/preferences.py --peer hf"
    )
    parser.add_argument("--size", default="0.7m", choices=SIZES, help="the model (0.7m)")
    parser.add_argument("--pairs", type=int, default=1000, help="pairs, of two sequences each (1000)")
    parser.add_argument("--peer", choices=("hf",), help="the codebase to compare with")
    parser.add_argument("--batches", default="8,32", help="batch sizes of the peer, the best one counts (8,32)")
    parser.add_argument("--repeats", type=int, default=3, help="measured calls of each side (3)")
    parser.add_argument("--busy", action="store_true", help="the machine is shared: torch's threads wait asleep")
    options = parser.parse_args()
    if min(options.pairs, options.repeats) < 1:
        parser.error("pairs and repeats must be at least 1")
    try:
        options.batches = [int(part) for part in options.batches.split(",")]
    except ValueError:
        parser.error(f"--batches {options.batches} is no list of sizes, such as 8,32")
    if min(options.batches) < 1:
        parser.error("a batch has at least one sequence")
    return options


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        shape = SIZES[options.size]
        asked = pairs(shape["vocab"], options.pairs)
        lengths = [len(prompt) + len(answer) for prompt, *answers in asked for answer in answers]
        path = Path(folder) / "spec.json"
        spec: dict[str, Any] = {"shape": shape, "context": CONTEXT, "weights": f"{folder}/weights", "pairs": asked}
        path.write_text(json.dumps(spec))
        own = [sys.executable, str(ROOT / "benchmarks" / "preferences_worker.py"), str(path)]
        ours = stack.enter_context(Worker("ours", own))  # first, since it writes the weights
        commands = peer_commands(options.peer, str(path), options.batches, options.busy) if options.peer else []
        workers = [ours, *(stack.enter_context(Worker(*command)) for command in commands)]
        about = {worker.name: worker.about for worker in workers}
        print(f"{options.size}: {about['ours']['parameters']:,} parameters, {len(lengths)} sequences of {min(lengths)} "
              f"to {max(lengths)} tokens, {sum(lengths):,} in all")  # fmt: skip
        all_taken = take_turns(workers, options.repeats, steps=1)

    shares = {"ours": about["ours"]["padding"]}
    shares |= {command[0]: padding(lengths, size) for command, size in zip(commands, options.batches, strict=False)}
    scores = {name: repeats[0].answer["loss"] for name, repeats in all_taken.items()}
    for name, repeats in all_taken.items():
        rate = spread([sum(lengths) / r.seconds for r in repeats])
        print(
            f"{name:<28}{rate['median']:>10,.0f} real tokens/s  ({rate['min']:,.0f} to {rate['max']:,.0f}), "
            f"{100 * shares[name]:.1f} % padding, mean score {scores[name]:.6f}, first call "
            f"{about[name]['first_seconds']:.1f} s"
        )
    taken, quiet = kept(all_taken)
    rates = {name: statistics.median(sum(lengths) / r.seconds for r in repeats) for name, repeats in taken.items()}
    best = max((name for name in rates if name != "ours"), key=lambda name: rates[name], default=None)
    if not quiet:
        print("the machine was not quiet: too few repeats without other load, so all are reported")
    config = {
        "size": options.size, **shape, "sequences": len(lengths), "tokens": sum(lengths), "dtype": "float32",
        "read": about["ours"]["read"], "peer": options.peer, "setting": best, "settings": rates, "padding": shares,
        "scores": scores, "quiet": quiet, "repeats": {name: len(repeats) for name, repeats in taken.items()},
        "machine": machine(), "about": about,
    }  # fmt: skip
    load = median_load([r for repeats in taken.values() for r in repeats])
    print(json_line(rates["ours"], rates[best] if best else None, "real tokens/s", load, config))


if __name__ == "__main__":
    run_main(main)
