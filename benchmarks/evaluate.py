"""Multiple-choice questions scored per second on this machine, measured alternately with lm-evaluation-harness.

    python benchmarks/evaluate.py --peer lm_eval
    python benchmarks/evaluate.py --size 35m --questions 500 --shots 5 --peer lm_eval

Both sides get the same questions as text, four options each, tokenise them and return the log-probability of every
option under the same OLMo 2 in float32; the answers are compared. The peer is lm-eval's `hf` backend with the best of
several batch sizes. The last line of standard output is JSON, with questions per second.
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
    SIZES,
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

OPTIONS = 4
BATCHES = (8, 64)  # of the peer
FIRST_WORD = 8  # ids below it are control tokens
END = 1  # the id of the end token


def questions(vocab: int, count: int, shots: int) -> list[tuple[str, str]]:
    """(context, option) of all options; a question has 20 to 60 words, an option 1 to 8, as in ARC."""
    draw = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{draw.randrange(FIRST_WORD, vocab)}" for _ in range(draw.randint(low, high)))

    before = "".join(f"{words(20, 60)} {words(1, 8)} " for _ in range(shots))
    asked = []
    for _ in range(count):
        context = before + words(20, 60)
        asked += [(context, f" {words(1, 8)}") for _ in range(OPTIONS)]
    return asked


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A tokenizer whose tokens are words, for both sides; the name of its end token is part of no word."""
    entries = {"<end>" if number == END else f"w{number}": number for number in range(vocab)}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "decoder": None, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "added_tokens": [
            {"id": END, "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
        ],
        "model": {"type": "WordLevel", "vocab": entries, "unk_token": "w0"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "w0", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def peer_commands(name: str, spec: str, busy: bool) -> list[tuple[str, list[str], dict[str, str]]]:
    """(name, command, environment) of each setting of the peer; the best one is reported.

    torch's threads spin at barriers by default, which is quickest alone and collapses beside other processes; passive
    ones sleep.
    """
    python = ROOT / ".peers" / name / "bin" / "python"
    if not python.is_file():
        raise BenchmarkError(f"no environment .peers/{name}; build it with benchmarks/setup_peers.sh {name}")
    script = str(ROOT / "benchmarks" / "peers" / "lm_eval_score.py")
    policies = {"sleeping threads": {"OMP_WAIT_POLICY": "passive"}} | ({} if busy else {"spinning threads": {}})
    return [
        (f"lm_eval, batches of {size}, {policy}", [str(python), script, spec, str(size)], environment)
        for size in BATCHES
        for policy, environment in policies.items()
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/evaluate.py --peer lm_eval"
    )
    parser.add_argument("--size", default="35m", choices=SIZES, help="the model (35m)")
    parser.add_argument("--questions", type=int, default=500, help="multiple-choice questions (500)")
    parser.add_argument("--shots", type=int, default=0, help="solved examples before each question (0)")
    parser.add_argument("--peer", choices=("lm_eval",), help="the codebase to compare with")
    parser.add_argument("--repeats", type=int, default=3, help="measured calls of each side (3)")
    parser.add_argument(
        "--busy", action="store_true", help="the machine is shared: leave out settings with spinning threads"
    )
    options = parser.parse_args()
    if min(options.questions, options.repeats) < 1 or options.shots < 0:
        parser.error("questions and repeats must be at least 1, shots at least 0")
    return options


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        shape = SIZES[options.size]
        weights = Path(folder) / "weights"
        spec: dict[str, Any] = {
            "shape": shape, "context": 2048, "weights": str(weights),
            "questions": questions(shape["vocab"], options.questions, options.shots),
        }  # fmt: skip
        weights.mkdir()
        write_tokenizer(weights, shape["vocab"])
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec))
        own = [sys.executable, str(ROOT / "benchmarks" / "evaluate_worker.py"), str(path)]
        ours = stack.enter_context(Worker("ours", own))  # first, since it writes the weights
        commands = peer_commands(options.peer, str(path), options.busy) if options.peer else []
        workers = [ours, *(stack.enter_context(Worker(*command)) for command in commands)]
        about = {worker.name: worker.about for worker in workers}
        print(f"{options.size}: {about['ours']['parameters']:,} parameters, {options.questions} questions")
        all_taken = take_turns(workers, options.repeats, steps=1)

    results = {name: repeats[0].answer["loss"] for name, repeats in all_taken.items()}
    for name, repeats in all_taken.items():
        rate = spread([options.questions / r.seconds for r in repeats])
        apart = abs(results[name] / results["ours"] - 1)
        print(
            f"{name:<28}{rate['median']:>9,.1f} questions/s  ({rate['min']:,.1f} to {rate['max']:,.1f}), sum of "
            f"log-probabilities apart by {apart:.1e}, first call {about[name]['first_seconds']:.1f} s"
        )
    taken, quiet = kept(all_taken)
    rates = {name: statistics.median(options.questions / r.seconds for r in repeats) for name, repeats in taken.items()}
    best = max((name for name in rates if name != "ours"), key=lambda name: rates[name], default=None)
    if not quiet:
        print("the machine was not quiet: too few repeats without other load, so all are reported")
    config = {
        "size": options.size, **shape, "questions": options.questions, "options": OPTIONS, "shots": options.shots,
        "dtype": "float32", "peer": options.peer, "setting": best, "settings": rates, "quiet": quiet,
        "repeats": {name: len(repeats) for name, repeats in taken.items()}, "machine": machine(), "about": about,
    }  # fmt: skip
    load = median_load([r for repeats in taken.values() for r in repeats])
    print(json_line(rates["ours"], rates[best] if best else None, "questions/s", load, config))


if __name__ == "__main__":
    run_main(main)
