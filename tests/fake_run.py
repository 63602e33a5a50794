"""A run's folders as the stages leave them, with made-up numbers: for tests of what reads them."""

import json
import math
import random
from pathlib import Path

METHODS = ("DPO", "PPO", "GRPO")
REWARDS = {
    "PPO": {"model": "reward", "verifier": None},
    "GRPO": {"model": None, "verifier": "recipes.arithmetic:check"},
}
PROMPTS = ("What is 12 + 30?", "Say <b>no</b> & </pre>.", "Count to 3.", "3 * 4?", "9 - 2?")


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def stage(run: Path, name: str, kind: str, *, needs=(), done=None, metrics=(), **fields) -> Path:
    """The folder of one stage; `done` is what `done.json` adds (None: the stage is not done)."""
    folder = run / name
    own = {"class": kind, "name": name, "seed": 0, **fields}
    config = {"recipe": run.name, "mesh": "fsdp=-1", "stage": own,
              "settings": {**own, "needs": {need: settings_of(run / need) for need in needs}}}  # fmt: skip
    write_json(folder / "config.json", config)
    if metrics:
        write_lines(folder / "metrics.jsonl", metrics)
    if done is not None:
        write_json(folder / "done.json", {"stage": name, "kind": kind, "hash": "0", "seconds": 100.0, **done})
    return folder


def settings_of(folder: Path) -> dict:
    """The settings of a stage that has a folder; of another one, none."""
    path = folder / "config.json"
    return json.loads(path.read_text())["settings"] if path.is_file() else {}


def supervised(run: Path, name: str, kind: str, steps: int, *, loss: float, needs=("data",), **fields) -> Path:
    """A finished stage whose loss falls to `loss`."""
    noise = random.Random(name)
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "loss": loss * (1 + 4 * math.exp(-4 * step / steps)) + noise.gauss(0, 0.03 * loss),
                "accuracy": 0.6, "tokens": step * 2048, "tokens_per_second": 6000.0, "mfu": 0.2, "skipped_total": 0,
                "lr": 1e-3, "grad_norm": 1.0, "seconds": 0.25, "time": 1.7672e9 + step}  # fmt: skip
        if step % max(1, steps // 8) == 0 or step == steps:
            line |= {"validation_step": step, "validation_loss": line["loss"] * 1.05, "validation_accuracy": 0.58}
        lines.append(line)
    done = {"step": steps, "checkpoint": f"checkpoints/{steps}", "metrics": lines[-1]}
    return stage(run, name, kind, needs=needs, metrics=lines, steps=steps, done=done, **fields)


def rl_line(step: int, steps: int, kind: str, noise: random.Random) -> dict:
    part = step / steps
    score = (0.45 + 0.35 * part if kind == "GRPO" else -1 + 3 * part) + noise.gauss(0, 0.03)
    line = {
        "step": step, "tokens": step * 5000, "loss": -0.01, "score": score, "score_std": 0.4, "reward": score - 0.1,
        "ended": 0.9 + 0.1 * part, "length": 14 + 3 * part + noise.gauss(0, 0.3), "kl": 4 * part + 0.1 * noise.random(),
        "entropy": 0.5 - 0.3 * part + noise.gauss(0, 0.01), "clip_fraction": 0.02 * part, "approx_kl": 0.002,
        "sampler_gap": 2e-7 + 1e-8 * noise.random(), "rollouts_per_second": 100.0 + step, "rollout_seconds": 1.2,
        "score_seconds": 0.3, "update_seconds": 0.9, "seconds": 2.4, "kl_coefficient": 0.05, "time": 1.7673e9 + step,
    }  # fmt: skip
    if kind == "PPO":
        line |= {"explained_variance": 0.8 * part, "value_loss": 0.2}
    if step % max(1, steps // 4) == 0 or step == steps:
        line |= {"validation_step": step, "validation_score": 0.5 + 0.3 * part + noise.gauss(0, 0.01),
                 "validation_stderr": 0.026, "validation_prompts": 300.0}  # fmt: skip
    return line


def reinforced(
    run: Path, name: str, kind: str, steps: int, *, reached: int | None = None, reward: str = "reward", **fields
) -> Path:
    """An RL stage at step `reached` of `steps`; done where it is left out. `reward` is the reward model of PPO."""
    noise = random.Random(name)
    lines = [rl_line(step, steps, kind, noise) for step in range(1, (reached or steps) + 1)]
    done = {"step": steps, "checkpoint": f"checkpoints/{steps}", "metrics": lines[-1]} if reached is None else None
    needs = ("sft", reward) if kind == "PPO" else ("sft",)
    judge = {**REWARDS[kind], "model": reward} if kind == "PPO" else REWARDS[kind]
    folder = stage(
        run, name, kind, needs=needs, metrics=lines, steps=steps, init="sft", reward=judge, done=done, **fields
    )
    for step in (1, len(lines)):
        sample = {
            "prompt": "<|user|>\n3 * 4?\n<|assistant|>\n",
            "response": "12",
            "score": 0.5,
            "ended": True,
            "kl": 1.5,
        }
        write_lines(folder / "samples" / f"{step}.jsonl", [sample])
    return folder


def rename(run: Path, name: str, new: str) -> None:
    """Calls a stage by another name."""
    folder = (run / name).rename(run / new)
    config = json.loads((folder / "config.json").read_text())
    for part in ("stage", "settings"):
        config[part]["name"] = new
    write_json(folder / "config.json", config)


def row(method: str, stages: list[str], score: float, **more) -> dict:
    return {
        "method": method, "stages": stages, "score": score, "stderr": 0.018,
        "interval": [score - 0.0353, score + 0.0353], "n": 600, "seeds": len(stages),
        "scores": {"problems": {"score": score, "stderr": 0.018}}, "kl": 0.0, "kl_stderr": 0.0, "length": 14.2,
        "ended": 0.99, "over": None, "published": None, **more,
    }  # fmt: skip


def table_of(seeds: int = 2) -> dict:
    rows = [row("SFT", ["sft"], 0.5123)]
    for i, method in enumerate(METHODS):
        score = 0.5623 + 0.061 * i
        over = {"method": "SFT", "difference": score - 0.5123, "stderr": 0.021}
        stages = [f"{method.lower()}-{seed}" for seed in range(seeds)]
        rows.append(row(method, stages, score, kl=1.25 + 1.5 * i, kl_stderr=0.11, over=over))
    task = {"name": "problems", "prompts": 600, "metric": "recipes.arithmetic:check", "samples": 1}
    return {"title": "Quickstart: one SFT model, three ways on", "recipe": "quickstart", "stage": "table",
            "tasks": [task], "rows": rows, "seconds": 431.0}  # fmt: skip


def evaluated(run: Path, table: dict, published: list | None = None, prompts: int = len(PROMPTS)) -> Path:
    """The stage that made `table`, with answers of every method."""
    names = [name for row in table["rows"] for name in row["stages"]]
    folder = stage(run, "table", "Evaluate", needs=tuple(names), done={"table": "table.json", "metrics": {}},
                   title=table["title"], published=published or [])  # fmt: skip
    write_json(folder / "table.json", table)
    write_json(run / "table.json", table)
    answers = [
        {"method": row["method"], "stage": row["stages"][0], "task": "problems", "prompt": prompt, "score": score,
         "label": f"{prompt[:5]} → 42", "ended": prompt != PROMPTS[-1],
         **({"reason": "no <b>42</b> in the answer"} if score == 0.0 else {}),
         "response": f"{row['method']} says 42 <script>alert('{row['method']}')</script>"}
        for row in table["rows"] for prompt, score in zip(PROMPTS[:prompts], (1.0, 0.0, 1.0, 0.5, 0.0), strict=False)
    ]  # fmt: skip
    write_lines(folder / "samples.jsonl", answers)
    return folder


def quickstart(root: Path, *, seeds: int = 2, steps: int = 8) -> Path:
    """A whole finished run, from the data to the table."""
    run = root / "quickstart"
    stage(run, "data", "MakeData", done={"files": ["pretrain.jsonl", "sft.jsonl"]}, function="recipes.arithmetic:write")
    stage(run, "tokenizer", "Tokenizer", needs=("data",), done={"tokenizer": {"vocab_size": 512}}, vocab_size=512)
    supervised(run, "pretrain", "Pretrain", 4 * steps, loss=1.2, needs=("data", "tokenizer"), model={"layers": 4})
    supervised(run, "sft", "SFT", 2 * steps, loss=0.7, needs=("data", "pretrain"), init="pretrain")
    answers = {"prompts": 3000, "pairs": 1846, "best_score": 0.81, "best_score_stderr": 0.01, "score": 0.52}
    stage(run, "answers", "BestOfN", needs=("sft",), done={"files": ["best.jsonl"], "metrics": answers}, init="sft")
    supervised(run, "reward", "RewardModel", 2 * steps, loss=0.3, needs=("sft", "answers"), init="sft")
    for seed in range(seeds):
        supervised(run, f"dpo-{seed}", "DPO", 2 * steps, loss=0.4, needs=("sft", "answers"), init="sft", beta=0.1,
                   seed=seed)  # fmt: skip
        reinforced(run, f"ppo-{seed}", "PPO", steps, seed=seed)
        reinforced(run, f"grpo-{seed}", "GRPO", steps, seed=seed)
    evaluated(run, table_of(seeds))
    return run
