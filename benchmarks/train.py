"""Throughput of the train step on this machine, measured alternately with a peer.

    python benchmarks/train.py --size 35m --peer hf
    python benchmarks/train.py --model olmoe-tiny --peer hf # a preset of models/, here a mixture of experts
    python benchmarks/train.py --size 5m --peer tunix --repeats 9
    python benchmarks/train.py --compute remat=dots         # with other fields of models.Compute

Both sides train the same model in float32 on the same batch: forward, backward, gradient clipping, AdamW. Bursts
alternate. transformers computes a mixture of experts in several ways, of which the fastest counts. The matrix products
of one step are also timed alone with the library of each side, to show how much of the difference is due to the
libraries, and our step is broken down into parts. The last line of standard output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from common import (
    QUIET_CORES,
    ROOT,
    SIZES,
    BenchmarkError,
    Repeat,
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
# Steps per burst, so that one lasts a second or more.
STEPS = {"tiny": 5, "5m": 6, "35m": 2}
ADAMW = {"lr": 3e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
# How transformers computes a mixture of experts: a loop over experts, or all in one product (docs of its integration).
EXPERTS = ("eager", "grouped_mm", "batched_mm")
# Settings of `easylm run` (runtime/host_memory.py). Peers are also run with them for comparison, but such runs are not
# reported as the peer, since peers do not set them.
MEMORY_KEPT = "memory kept"
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62), "MALLOC_ARENA_MAX": "1"}


class Product(NamedTuple):
    """A product with weights, [tokens, inputs] by [inputs, outputs], and how often a step computes y, dx and dW."""

    shape: tuple[int, int, int]
    forward: int
    gradients: int

    @property
    def flops(self) -> float:
        m, k, n = self.shape
        return 2.0 * m * k * n * (self.forward + 2 * self.gradients)

    def seconds(self, each: Sequence[float]) -> float:
        """Seconds per step, from those of one y, one dx and one dW."""
        return each[0] * self.forward + (each[1] + each[2]) * self.gradients


def our_products(shape: Mapping[str, int], rows: int, length: int, chunk: int) -> dict[str, Product]:
    """Products of our step: fused projections, and the vocabulary head in chunks whose logits are computed twice.

    Those of experts are left out: they are timed as a part of the step.
    """
    layers, d, f, v = shape["layers"], shape["width"], shape["ffn"], shape["vocab"]
    tokens = rows * length
    chunk = rows * min(length, max(1, chunk // rows))
    chunks = -(-tokens // chunk)
    dense = {
        "gate, up": Product((tokens, d, 2 * f), layers, layers),
        "down": Product((tokens, f, d), layers, layers),
    }
    return {
        "query, key, value": Product((tokens, d, 3 * d), layers, layers),
        "attention out": Product((tokens, d, d), layers, layers),
        **({} if "experts" in shape else dense),
        "head": Product((chunk, d, v), 2 * chunks, chunks),
    }


def hf_products(shape: Mapping[str, int], rows: int, length: int) -> dict[str, Product]:
    """Products of transformers' step: separate projections, and the head for all tokens at once."""
    layers, d, f, v = shape["layers"], shape["width"], shape["ffn"], shape["vocab"]
    tokens = rows * length
    dense = {
        "gate, up": Product((tokens, d, f), 2 * layers, 2 * layers),
        "down": Product((tokens, f, d), layers, layers),
    }
    return {
        "query, key, value": Product((tokens, d, d), 3 * layers, 3 * layers),
        "attention out": Product((tokens, d, d), layers, layers),
        **({} if "experts" in shape else dense),
        "head": Product((tokens, d, v), 1, 1),
    }


def measure_products(worker: Worker, products: Mapping[str, Product]) -> dict[str, float]:
    """Seconds per step of each product."""
    shapes = [list(product.shape) for product in products.values()]
    found = worker.ask("products", shapes=shapes, times=3)["seconds"]
    return {name: product.seconds(each) for (name, product), each in zip(products.items(), found, strict=True)}


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of every name over all rounds."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def breakdown(parts: Mapping[str, float], products: Mapping[str, float], layers: int) -> dict[str, float]:
    """The parts of a step in seconds; they sum to the step.

    `parts` are seconds of programs on their own, `products` of the matrix products a step does. What is left is
    norms, rotations, the feed-forward's elementwise part, residuals, and copies between layouts.
    """
    blocks = sum(seconds for name, seconds in products.items() if name != "head")
    lines = {
        "matrix products of the blocks": blocks,
        "matrix products of the head": products["head"],
        "attention": parts["attention"] * layers,
        **({"routers and experts": parts["experts"] * layers} if "experts" in parts else {}),
        "softmax and loss": max(0.0, parts["head"] - products["head"]),
        "optimizer": parts["optimizer"],
    }
    return {**lines, "the rest": parts["step"] - sum(lines.values())}


def peer_workers(name: str, spec_file: str, mixture: bool) -> list[tuple[str, list[str], dict[str, str]]]:
    """(name, command, environment) of each setting of a peer; the best one as installed is reported.

    torch's threads spin at barriers by default, which is quickest alone and collapses beside other processes; passive
    ones sleep. A mixture of experts is computed in each way that transformers has, with either.
    """
    python = ROOT / ".peers" / name / "bin" / "python"
    if not python.is_file():
        raise BenchmarkError(f"no environment .peers/{name}; build it with benchmarks/setup_peers.sh {name}")
    command = [str(python), str(ROOT / "benchmarks" / "peers" / f"{name}_train.py"), spec_file]
    passive = {"OMP_WAIT_POLICY": "passive"}
    settings = {"hf": {}, "hf, sleeping threads": passive} if name == "hf" else {name: {}}
    if mixture:
        threads = {"": {}, ", sleeping threads": passive}
        return [(f"{name}, {way}{how}", [*command, way], threads[how]) for way in EXPERTS for how in threads]
    last = list(settings)[-1]
    settings[f"{last}, {MEMORY_KEPT}"] = {**settings[last], **KEPT_MEMORY}
    return [(setting, command, environment) for setting, environment in settings.items()]


def contenders(workers: Sequence[Worker], first: Mapping[str, Repeat]) -> list[Worker]:
    """Us, and the settings of the peer that needed at most three times as long as its best one in the first burst."""
    seconds = {worker.name: first[worker.name].seconds for worker in workers[1:]}
    kept = [worker for worker in workers[1:] if seconds[worker.name] <= 3 * min(seconds.values())]
    for name in seconds.keys() - {worker.name for worker in kept}:
        print(f"{name}: {seconds[name] / min(seconds.values()):.1f} times as long as the best; left out of the repeats")
    return [workers[0], *kept]


def report_sides(taken: Mapping[str, Sequence[Repeat]], tokens: int) -> None:
    """Prints one line for each side, and one for its repeats with other load."""
    for name, repeats in taken.items():
        rate = spread([tokens / r.seconds for r in repeats])
        cores = statistics.median(r.cpu_seconds / r.seconds for r in repeats)
        each = statistics.median(tokens / r.cpu_seconds for r in repeats)
        print(
            f"{name:<36}{rate['median']:>10,.0f} tokens/s  ({rate['min']:,.0f} to {rate['max']:,.0f}), "
            f"{cores:.1f} cores busy, {each:,.0f} tokens a CPU second, {len(repeats)} repeats"
        )
        noisy = [f"{i + 1}: {r.load:.2f}" for i, r in enumerate(repeats) if r.load is not None and not r.quiet]
        if noisy:
            print(f"{'':<36}others used more than {QUIET_CORES} cores in repeats {', '.join(noisy)}")


def report_products(seconds: Mapping[str, Mapping[str, float]], flops: Mapping[str, float]) -> dict[str, float]:
    """Time of the matrix products of one step with each side's library; returns GFLOP/s of each."""
    rates = {}
    for side, products in seconds.items():
        total = sum(products.values())
        rates[side] = flops[side] / total / 1e9
        print(f"matrix products of a step alone, {side}: {1e3 * total:,.0f} ms, {rates[side]:,.0f} GFLOP/s")
    return rates


def report_breakdown(parts: Mapping[str, float], lines: Mapping[str, float]) -> None:
    print(f"\nparts of our step of {1e3 * parts['step']:,.0f} ms")
    for name, seconds in lines.items():
        print(f"  {name:<32}{1e3 * seconds:>8,.0f} ms{100 * seconds / parts['step']:>7.1f} %")
    print(
        f"  (programs on their own: forward {1e3 * parts['forward']:,.0f} ms, forward and backward "
        f"{1e3 * parts['gradient']:,.0f} ms, update {1e3 * parts['optimizer']:,.0f} ms)\n"
    )


def check_same_model(ours: float, peer: float) -> None:
    """Checks that the first losses agree, since both sides start from the same weights."""
    if abs(ours - peer) > 1e-3 * abs(peer):
        raise BenchmarkError(f"the sides do not train the same model: first losses {ours:.5f} and {peer:.5f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/train.py --size 35m --peer hf"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--size", default="35m", choices=SIZES, help="an OLMo 2 (35m)")
    which.add_argument("--model", metavar="NAME", help="a preset, such as olmoe-tiny")
    parser.add_argument("--peer", choices=PEERS, help="the codebase to compare with")
    parser.add_argument("--repeats", type=int, default=7, help="bursts of each side (7)")
    parser.add_argument("--steps", type=int, help="steps per burst (so that one lasts a second)")
    parser.add_argument("--rows", type=int, default=4, help="rows per batch (4)")
    parser.add_argument("--length", type=int, default=512, help="tokens per row (512)")
    parser.add_argument("--compute", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of models.Compute")
    parser.add_argument("--no-breakdown", action="store_true", help="measure whole steps only")
    options = parser.parse_args()
    if min(options.repeats, options.rows, options.length, options.steps or 1) < 1:
        parser.error("repeats, steps, rows and length must be at least 1")
    if options.model and options.peer == "tunix":
        parser.error("tunix trains its Llama of a --size only")
    return options


def shape_of(options: argparse.Namespace) -> dict[str, int]:
    """Layers, widths and vocabulary of the model, and the experts of a mixture."""
    if not options.model:
        return SIZES[options.size]
    import models
    from models.errors import UserError

    try:
        config = models.preset(options.model)
    except UserError as error:
        raise BenchmarkError(f"--model: {error}") from None
    shape = {name: getattr(config, name) for name in SIZES["tiny"]}
    if config.experts is not None:
        shape |= {"experts": config.experts.count, "active": config.experts.active}
    return shape


def write_spec(options: argparse.Namespace, folder: str) -> str:
    """Writes the specification for the workers."""
    shape = shape_of(options)
    tokens = random_rows(shape["vocab"], options.rows, options.length + 1)
    spec = {
        "model": options.model, "shape": shape, "length": options.length, "tokens": tokens,
        "compute": options.compute, **ADAMW,
        "weights": str(Path(folder) / "weights") if options.peer == "hf" else None,
    }  # fmt: skip
    path = Path(folder) / "spec.json"
    path.write_text(json.dumps(spec))
    return str(path)


def details(
    options: argparse.Namespace, workers: Sequence[Worker], taken: Mapping[str, Sequence[Repeat]]
) -> dict[str, Any]:
    """Measures products and parts in alternating rounds; prints them, and returns them for the JSON line."""
    chunk = next((int(c.partition("=")[2]) for c in options.compute if c.startswith("logits_chunk=")), 1024)
    shape = shape_of(options)
    products = {"ours": our_products(shape, options.rows, options.length, chunk)}
    for worker in workers[1:]:
        if options.peer == "hf":  # all settings, since load slows some of them more than others
            products[worker.name] = hf_products(shape, options.rows, options.length)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in (*products, "parts")}
    for _ in range(max(3, options.repeats // 2) if options.repeats > 1 else 1):
        for worker in workers:
            if worker.name in products:
                rounds[worker.name].append(measure_products(worker, products[worker.name]))
        rounds["parts"].append(workers[0].ask("parts", times=1)["seconds"])
    seconds = {name: medians(rounds[name]) for name in products}
    rates = report_products(seconds, {name: sum(p.flops for p in made.values()) for name, made in products.items()})
    parts = medians(rounds["parts"])
    lines = breakdown(parts, seconds["ours"], shape["layers"])
    report_breakdown(parts, lines)
    return {
        "product_gflops": rates,
        "step_ms": 1e3 * parts["step"],
        "milliseconds": {name: 1e3 * value for name, value in lines.items()},
    }


def main() -> None:
    options = arguments()
    name, shape = options.model or options.size, shape_of(options)
    steps = options.steps or STEPS.get(name, 2)
    tokens = options.rows * options.length * steps
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        spec = write_spec(options, folder)
        peers = peer_workers(options.peer, spec, "experts" in shape) if options.peer else []
        own = [sys.executable, str(ROOT / "benchmarks" / "train_worker.py"), spec]
        workers = [stack.enter_context(Worker("ours", own))]
        workers += [stack.enter_context(Worker(*peer)) for peer in peers]
        if options.peer == "hf":
            check_same_model(workers[0].about["first_loss"], workers[1].about["first_loss"])
        parameters = workers[0].about["parameters"]
        print(f"{name}: {parameters:,} parameters, {options.rows} rows of {options.length} tokens")
        if len(workers) > 3:
            workers = contenders(workers, {name: took for name, (took,) in take_turns(workers, 1, steps=1).items()})
        all_taken = take_turns(workers, options.repeats, steps=steps)
        report_sides(all_taken, tokens)
        extra = {} if options.no_breakdown else details(options, workers, all_taken)
        about = {worker.name: worker.about for worker in workers}

    taken, quiet = kept(all_taken)
    rates = {name: statistics.median(tokens / r.seconds for r in repeats) for name, repeats in taken.items()}
    ours = rates.pop("ours")
    # Hardly affected by other load where threads sleep while waiting; spinning threads count as busy.
    cpu_rates = {name: statistics.median(tokens / r.cpu_seconds for r in repeats) for name, repeats in taken.items()}
    installed = [name for name in rates if MEMORY_KEPT not in name]
    best = max(installed, key=lambda name: rates[name]) if installed else None
    if not quiet:
        print("the machine was not quiet: too few repeats without other load, so all are reported")
    config = {
        "size": name, **shape, "rows": options.rows, "length": options.length, "dtype": "float32",
        "peer": options.peer, "setting": best, "settings": rates,
        "tokens_per_cpu_second": cpu_rates, "steps": steps,
        "repeats": {name: len(repeats) for name, repeats in taken.items()}, "quiet": quiet,
        "compute": options.compute, **extra, "machine": machine(), "about": about,
    }  # fmt: skip
    load = median_load([r for repeats in taken.values() for r in repeats])
    print(json_line(ours, rates[best] if best else None, "tokens/s", load, config))


if __name__ == "__main__":
    run_main(main)
