"""Throughput of generation on this machine, measured alternately with a peer.

    python benchmarks/decode.py --size 35m --prompts 16 --peer hf
    python benchmarks/decode.py --size 5m --prompts 64 --peer tunix --repeats 9

Both sides sample the same number of tokens from the same prompts at temperature 1 without an end token, with an OLMo 2
of the same shape in float32 (Tunix: its Llama, with slightly less work). Ours also returns the log-probability of every
token; peers do not. The last line of standard output is JSON, with new tokens per second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from common import (
    ROOT,
    SIZES,
    BenchmarkError,
    Worker,
    json_line,
    kept,
    machine,
    median_load,
    random_rows,
    run_main,
    spread,
    take_turns,
)  # fmt: skip

PEERS = ("hf", "tunix")


def peer_workers(name: str, spec_file: str, busy: bool) -> list[tuple[str, list[str], dict[str, str]]]:
    """(name, command, environment) of each setting of a peer; the best one is reported.

    torch's threads spin at barriers by default, which is quickest alone and collapses beside other processes; passive
    ones sleep. A static cache spares `transformers` the copy that grows its cache at every token.
    """
    python = ROOT / ".peers" / name / "bin" / "python"
    if not python.is_file():
        raise BenchmarkError(f"no environment .peers/{name}; build it with benchmarks/setup_peers.sh {name}")
    command = [str(python), str(ROOT / "benchmarks" / "peers" / f"{name}_generate.py"), spec_file]
    settings: dict[str, tuple[list[str], dict[str, str]]] = {name: ([], {})}
    if name == "hf":
        if busy:
            settings.clear()
        settings["hf, sleeping threads"] = ([], {"OMP_WAIT_POLICY": "passive"})
        settings["hf, static cache, sleeping threads"] = (["static"], {"OMP_WAIT_POLICY": "passive"})
    return [(setting, command + more, environment) for setting, (more, environment) in settings.items()]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/decode.py --size 35m --peer hf"
    )
    parser.add_argument("--size", default="35m", choices=SIZES, help="the model (35m)")
    parser.add_argument("--prompts", type=int, default=16, help="prompts generated for at once (16)")
    parser.add_argument("--peer", choices=PEERS, help="the codebase to compare with")
    parser.add_argument("--repeats", type=int, default=7, help="measured calls of each side (7)")
    parser.add_argument("--length", type=int, default=32, help="tokens of a prompt (32)")
    parser.add_argument("--new", type=int, default=128, help="tokens generated for each (128)")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="the machine is shared: leave out settings with spinning threads, which take minutes",
    )
    options = parser.parse_args()
    if min(options.prompts, options.repeats, options.length, options.new) < 1:
        parser.error("prompts, repeats, length and new must be at least 1")
    return options


def write_spec(options: argparse.Namespace, folder: str) -> str:
    """Writes the specification for the workers."""
    shape = SIZES[options.size]
    prompts = random_rows(shape["vocab"], options.prompts, options.length)
    spec = {
        "shape": shape, "context": options.length + options.new, "prompts": prompts, "new": options.new,
        "weights": str(Path(folder) / "weights") if options.peer == "hf" else None,
    }  # fmt: skip
    path = Path(folder) / "spec.json"
    path.write_text(json.dumps(spec))
    return str(path)


def main() -> None:
    options = arguments()
    tokens = options.prompts * options.new
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        spec = write_spec(options, folder)
        peers = peer_workers(options.peer, spec, options.busy) if options.peer else []
        own = [sys.executable, str(ROOT / "benchmarks" / "decode_worker.py"), spec]
        workers = [stack.enter_context(Worker(name, *rest)) for name, *rest in [("ours", own), *peers]]
        about = {worker.name: worker.about for worker in workers}
        print(
            f"{options.size}: {about['ours']['parameters']:,} parameters, {options.prompts} prompts of "
            f"{options.length} tokens, {options.new} new tokens each"
        )
        all_taken = take_turns(workers, options.repeats, steps=1)

    for name, repeats in all_taken.items():
        rate = spread([tokens / r.seconds for r in repeats])
        cores = statistics.median(r.cpu_seconds / r.seconds for r in repeats)
        company = statistics.median(r.load or 0.0 for r in repeats)
        print(
            f"{name:<36}{rate['median']:>10,.0f} tokens/s  ({rate['min']:,.0f} to {rate['max']:,.0f}), "
            f"{cores:.1f} cores busy, others {company:.2f}, first call {about[name]['first_seconds']:.1f} s"
        )
    taken, quiet = kept(all_taken)
    rates = {name: statistics.median(tokens / r.seconds for r in repeats) for name, repeats in taken.items()}
    ours = rates.pop("ours")
    best = max(rates, key=lambda name: rates[name]) if rates else None
    if not quiet:
        print("the machine was not quiet: too few repeats without other load, so all are reported")
    config = {
        "size": options.size, **SIZES[options.size], "prompts": options.prompts, "length": options.length,
        "new": options.new, "dtype": "float32", "peer": options.peer, "setting": best, "settings": rates,
        "repeats": {name: len(repeats) for name, repeats in taken.items()}, "quiet": quiet,
        "machine": machine(), "about": about,
    }  # fmt: skip
    load = median_load([r for repeats in taken.values() for r in repeats])
    print(json_line(ours, rates[best] if best else None, "tokens/s", load, config))


if __name__ == "__main__":
    run_main(main)
