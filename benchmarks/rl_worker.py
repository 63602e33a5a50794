"""The worker of benchmarks/rl.py: bursts of the quickstart's GRPO with synchronous or asynchronous rollouts."""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import serve, take_stdout

CHANNEL = take_stdout()

import jax  # noqa: E402 - after standard output is redirected

from easylm_jax.config import Checkpoints, Monitoring, Recipe, Reward, Source  # noqa: E402
from easylm_jax.experiment import Experiment  # noqa: E402
from easylm_jax.runtime.host_memory import keep_freed_memory  # noqa: E402
from easylm_jax.runtime.monitor.metrics import read_metrics  # noqa: E402
from recipes import quickstart  # noqa: E402

WARM_UP = 3  # warm-up steps at the start of a burst
NEVER = 10**9


def slow(response: str, record: Mapping[str, Any], milliseconds: float) -> float:
    """A verifier that sleeps and then returns 1: simulates an expensive verifier."""
    time.sleep(milliseconds / 1e3)
    return 1.0


class Rollouts:
    """The quickstart's stage `grpo-0` from its finished SFT model, in a separate folder."""

    def __init__(self, spec: dict[str, Any]):
        run, self.folder = Path(spec["run"]).resolve(), Path(spec["folder"])
        stage = quickstart.recipe.stage("grpo-0")
        data = dataclasses.replace(
            stage.data, sources=(Source(str(run / "data" / "prompts.jsonl")),),
            tokenizer=f"sp:{run / 'tokenizer' / 'tokenizer.model'}",
        )  # fmt: skip
        check = f"'{quickstart.CHECK}'"
        if spec["verifier_ms"]:
            check += f" and 'rl_worker:slow'({spec['verifier_ms']})"
        self.stage = dataclasses.replace(
            stage, init=f"run:{run / 'sft'}", data=data, validation=None, check=None,
            reward=Reward(verifier=check, missing_end=0.0, workers=spec["workers"]),
            checkpoints=Checkpoints(every=NEVER), monitoring=Monitoring(watchdog=False, heartbeat_seconds=60),
            batch=spec["batch"] or stage.batch, mini_batch=None if spec["batch"] else stage.mini_batch,
        )  # fmt: skip
        jax.config.update("jax_compilation_cache_dir", str(self.folder / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def burst(self, asynchronous: int, steps: int, seed: int) -> dict[str, Any]:
        """Trains `steps` steps from the SFT model with this many asynchronous steps."""
        name = f"ahead-{asynchronous}"
        stage = dataclasses.replace(self.stage, name=name, seed=seed, steps=steps, asynchronous=asynchronous)
        experiment = Experiment(Recipe("benchmark", stages=(stage,)), self.folder / "runs")
        folder = experiment.folder(name)
        shutil.rmtree(folder, ignore_errors=True)
        cpu, began = time.process_time(), time.perf_counter()
        experiment.run(stage)
        whole = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        lines = read_metrics(folder)
        times = [line["time"] for line in lines]
        each = [after - before for before, after in zip(times, times[1:], strict=False)][WARM_UP:]
        counted = lines[WARM_UP + 1 :]
        clocks = ("rollout_seconds", "verify_seconds", "score_seconds", "update_seconds", "wait_seconds")
        return {
            **whole, "step_seconds": each,
            **{name: statistics.median(line.get(name, 0.0) for line in counted) for name in clocks},
            "staleness": dict(collections.Counter(str(line.get("staleness", 0)) for line in lines)),
            "sampler_gap": statistics.fmean(line["sampler_gap"] for line in counted),
            "ratio_clipped": statistics.fmean(line["clip_fraction"] for line in counted),
            "reward": statistics.fmean(line["reward"] for line in lines[-max(1, steps // 4) :]),
        }  # fmt: skip


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    keep_freed_memory()  # as `easylm run` does
    began = time.perf_counter()
    rollouts = Rollouts(spec)
    for asynchronous in (0, spec["ahead"]):  # compiles, and fills the cache of compiled programs
        rollouts.burst(asynchronous, WARM_UP + 2, 0)
    stage = rollouts.stage
    about = {
        "jax": jax.__version__, "devices": [str(device) for device in jax.devices()], "prompts": stage.batch,
        "samples": stage.samples, "max_new_tokens": stage.sampling.max_new_tokens, "updates": stage.updates,
        "verifier": stage.reward.verifier, "ready_seconds": time.perf_counter() - began,
    }  # fmt: skip
    serve(about, {"burst": rollouts.burst}, CHANNEL)


if __name__ == "__main__":
    main()
