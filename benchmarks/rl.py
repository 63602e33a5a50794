"""Seconds per step of reinforcement learning with synchronous and with asynchronous rollouts.

    make quickstart && python benchmarks/rl.py
    python benchmarks/rl.py --verifier-ms 20          # adds 20 ms to each verifier call

Runs the quickstart's GRPO from its SFT model with the trainer. Both modes alternate in one process with the same seeds.
Prints the time of the phases of a step, how long the trainer waited for rollouts, how stale the sampling policies were,
the difference between log-probabilities of sampler and trainer (the gap), and the final reward. The last line of
standard output is JSON: `ours` is the median seconds per step with asynchronous rollouts, `peer` with synchronous ones,
`ratio` the speed-up.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sys
import tempfile
from pathlib import Path

from common import (
    ROOT,
    BenchmarkError,
    Repeat,
    Worker,
    json_line,
    kept,
    machine,
    measure,
    median_load,
    run_main,
)  # fmt: skip

CLOCKS = ("rollout", "verify", "score", "update", "wait")


def summary(repeats: list[Repeat]) -> dict[str, object]:
    """Medians over all steps of the reported repeats; counts of staleness over the same steps."""
    answers = [repeat.answer for repeat in repeats]
    staleness: collections.Counter[str] = collections.Counter()
    for answer in answers:
        staleness.update(answer["staleness"])
    rewards = [answer["reward"] for answer in answers]
    error = statistics.stdev(rewards) / len(rewards) ** 0.5 if len(rewards) > 1 else 0.0
    return {
        "step_seconds": statistics.median(s for answer in answers for s in answer["step_seconds"]),
        **{name: statistics.median(answer[f"{name}_seconds"] for answer in answers) for name in CLOCKS},
        "staleness": dict(sorted(staleness.items())),
        "sampler_gap": statistics.fmean(answer["sampler_gap"] for answer in answers),
        "reward": statistics.fmean(rewards), "reward_stderr": error,
    }  # fmt: skip


def report(found: dict[str, dict]) -> None:
    for name, one in found.items():
        print(f"{name}: {one['step_seconds']:.3f} s a step")
        print("  " + ", ".join(f"{clock} {one[clock]:.3f} s" for clock in CLOCKS))
        print(
            f"  staleness {one['staleness']} (steps: how many rollouts), gap {one['sampler_gap']:.2e} nats a token, "
            f"reward at the end {one['reward']:.3f} ± {one['reward_stderr']:.3f}"
        )
    ahead = found["ahead"]
    hidden = 1 - ahead["wait"] / max(ahead["rollout"] + ahead["verify"], 1e-9)
    print(f"ahead: {100 * hidden:.0f} % of the time of rollouts and rewards overlapped with updates")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/rl.py --run runs/quickstart"
    )
    parser.add_argument("--run", default="runs/quickstart", help="a finished quickstart (runs/quickstart)")
    parser.add_argument("--repeats", type=int, default=3, help="bursts of each mode (3)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a burst, including a few of warm-up (20)")
    parser.add_argument("--ahead", type=int, default=1, help="asynchronous steps (1)")
    parser.add_argument("--batch", type=int, default=None, help="prompts of a rollout (the quickstart's)")
    parser.add_argument("--verifier-ms", type=float, default=0, help="milliseconds to add to each verifier call (0)")
    parser.add_argument("--workers", type=int, default=None, help="verifier processes (cores minus one)")
    options = parser.parse_args()
    if options.repeats < 1 or options.steps < 6 or options.ahead < 1:
        parser.error("repeats and ahead must be at least 1 and steps at least 6")
    return options


def main() -> None:
    options = arguments()
    if not (Path(options.run) / "sft" / "done.json").is_file():
        raise BenchmarkError(f"{options.run} has no finished stage sft; run make quickstart first, or give --run")
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.json"
        names = ("run", "ahead", "batch", "verifier_ms", "workers")
        spec.write_text(json.dumps({"folder": folder, **{name: getattr(options, name) for name in names}}))
        with Worker("ours", [sys.executable, str(ROOT / "benchmarks" / "rl_worker.py"), str(spec)]) as worker:
            taken: dict[str, list[Repeat]] = {"at once": [], "ahead": []}
            for number in range(options.repeats):
                for name in ("at once", "ahead") if number % 2 == 0 else ("ahead", "at once"):
                    ahead = options.ahead if name == "ahead" else 0
                    taken[name].append(measure(worker, "burst", asynchronous=ahead, steps=options.steps, seed=number))
            about = worker.about
    counted, quiet = kept(taken)
    found = {name: summary(repeats) for name, repeats in counted.items()}
    report(found)
    if not quiet:
        print("the machine was not quiet: too few repeats without other load, so all are reported")
    config = {
        "steps": options.steps, "ahead": options.ahead, "repeats": {k: len(v) for k, v in counted.items()},
        "quiet": quiet, **{name.replace(" ", "_"): one for name, one in found.items()}, "machine": machine(),
        "about": about,
    }  # fmt: skip
    load = median_load([r for repeats in counted.values() for r in repeats])
    ours, peer = (found[name]["step_seconds"] for name in ("ahead", "at once"))
    print(json_line(ours, peer, "s/step", load, config, ratio=peer / ours))


if __name__ == "__main__":
    run_main(main)
