"""A tiny run up to the stages of reinforcement learning: data, vocabulary, policy, reward model; made once a session.

`made()` is that run; tests put stages behind it with `experiment(folder, *stages)`. In this process everything runs on
as many of the simulated devices as `devices(n)` says: one compiles fastest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import easylm_jax.evaluate.stage
import easylm_jax.synthesize.batches
import easylm_jax.train.rl.stage
import easylm_jax.train.stage
from easylm_jax.checkpoint import arrays, store
from easylm_jax.checkpoint.checkpointer import Checkpointer
from easylm_jax.config import (
    GRPO,
    PPO,
    SFT,
    Checkpoints,
    DataSpec,
    DecoderConfig,
    OnlineDPO,
    OptimizerConfig,
    Pretrain,
    Recipe,
    Reward,
    RewardModel,
    Sampling,
    Source,
    Stage,
    Tokenizer,
)
from easylm_jax.data import load_tokenizer, train_sentencepiece
from easylm_jax.decode import rollout
from easylm_jax.decode.rollout import Rollout
from easylm_jax.experiment import Experiment
from easylm_jax.runtime import mesh
from easylm_jax.runtime.monitor.metrics import read_metrics
from easylm_jax.train.rl import stage as rl_stage
from easylm_jax.train.rl.job import RLState
from easylm_jax.train.rl.trainer import RolloutLoop
from models import trees

MODEL = DecoderConfig("olmo2", layers=2, width=32, heads=4, ffn=64, vocab=320, context=64, qk_norm=True)
RATE = OptimizerConfig("1e-3", weight_decay=0.0)
WORDS = ("one", "two", "three", "four", "five", "six", "seven")
MARKERS = ("<|im_start|>", "<|im_end|>")
NEW = 8  # tokens of the longest answer
VERIFIER = "rl_kit:share_of_e"


def share_of_e(response: str, record: Mapping[str, Any]) -> float:
    """A reward that a policy can learn: the share of letters that are "e"; 0 for an empty answer."""
    letters = response.replace(" ", "")
    return letters.count("e") / max(len(letters), 1)


def coarse(response: str, record: Mapping[str, Any]) -> float:
    """One of two values, so that many answers are worth the same."""
    return float(share_of_e(response, record) > 0.25)


def constant(response: str, record: Mapping[str, Any]) -> float:
    return 0.37


def of_prompt(response: str, record: Mapping[str, Any]) -> float:
    """A score that depends on the prompt and the answer, different for most."""
    return (len(response) * 7 + len(record["_messages"][-1]["content"])) % 11 / 11


def not_a_number(response: str, record: Mapping[str, Any]) -> float:
    return float("nan")


def of_responses(values: np.ndarray, made: Rollout) -> np.ndarray:
    """`rollout.at_targets` undone: values where tokens are targets [B, S] as those of response tokens [B, T]."""
    moved = np.zeros(made.responses.shape, values.dtype)
    for row, (prompt, response) in enumerate(zip(made.prompt_lengths, made.lengths, strict=True)):
        moved[row, :response] = values[row, prompt - 1 : prompt - 1 + response]
    return moved


def chat(i: int) -> dict[str, Any]:
    """A question of one to six words and an answer of one to three."""
    ask, say = (" ".join(WORDS[(i * k + j) % 7] for j in range(1 + (i + k) % n)) for k, n in ((3, 6), (1, 3)))
    return {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]}


def rendered(record: dict[str, Any]) -> str:
    return "\n".join(f"<|{turn['role']}|>\n{turn['content']}" for turn in record["messages"])


def pair(i: int) -> dict[str, Any]:
    ask = chat(i)["messages"][:1]
    better, worse = ({"role": "assistant", "content": text} for text in ("one one two", "six five"))
    return {"chosen": [*ask, better], "rejected": [*ask, worse]}


def prompt(i: int) -> dict[str, Any]:
    return {"messages": chat(i + 500)["messages"][:1], "ground_truth": str(i)}


def some_records(seed: int, count: int) -> dict[str, list[dict[str, Any]]]:
    """What a `MakeData` stage writes, after a moment in which its progress can be seen."""
    time.sleep(0.1)
    return {"a.jsonl": [prompt(seed + i) for i in range(count)]}


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


RECIPE = """
from pathlib import Path

import rl_kit
from easylm_jax.config import *
from rl_kit import common, grpo, online_dpo, ppo, prompts

HOME = Path("{home}")
rl_kit.home = lambda: HOME
recipe = Recipe("rl", mesh="fsdp=-1", stages=(*rl_kit.base_stages(HOME), {stages}))
"""


def prompts(folder: str | Path, **more: Any) -> DataSpec:
    """The prompts of the run below `folder`; at most 24 tokens each."""
    source = Source(f"{folder}/prompts.jsonl")
    return DataSpec(
        (source,), more.pop("tokenizer", "stage:tokenizer"), 24, kind="prompts", template=more.pop("template", "tulu"),
        **more,
    )  # fmt: skip


def base_stages(folder: str | Path) -> tuple[Stage, ...]:
    """What stands before reinforcement learning."""
    chats, pairs = (Source(f"{folder}/{name}.jsonl") for name in ("chats", "pairs"))
    fine = DataSpec((chats,), "stage:tokenizer", 48, kind="chat", template="tulu", packing="best_fit")
    ordered = DataSpec((pairs,), "stage:tokenizer", 64, kind="preference", template="tulu", max_pairs_per_row=1)
    fast = OptimizerConfig("1e-2", weight_decay=0.0)
    each = Checkpoints(every=1)  # by default the steps on the disk depend on how long a save takes
    return (
        Tokenizer(
            "tokenizer",
            sources=(Source(f"{folder}/rendered.jsonl"),),
            vocab_size=300,
            symbols=MARKERS,
        ),
        Pretrain("pretrain", model=MODEL, data=fine, batch=8, steps=2, optimizer=RATE, checkpoints=each),
        SFT("sft", init="pretrain", data=fine, batch=8, steps=20, epochs=40, optimizer=fast, checkpoints=each),
        RewardModel("reward", init="sft", data=ordered, batch=8, steps=3, epochs=10, optimizer=RATE, checkpoints=each),
    )


@contextlib.contextmanager
def devices(count: int) -> Iterator[None]:
    """Stages of this process see that many of the simulated devices."""
    modules = (
        easylm_jax.synthesize.batches, easylm_jax.evaluate.stage, easylm_jax.train.rl.stage, easylm_jax.train.stage,
    )  # fmt: skip
    before = [module.make_mesh for module in modules]
    try:
        for module in modules:
            module.make_mesh = lambda text, some=None: mesh.make_mesh(text, some or jax.devices()[:count])
        yield
    finally:
        for module, make in zip(modules, before, strict=True):
            module.make_mesh = make


@dataclasses.dataclass(frozen=True)
class Made:
    """The finished run: where its data lie and where its stages are (`out`/rl)."""

    folder: Path
    out: Path

    def tokenizer(self):
        return load_tokenizer(f"sp:{self.out}/rl/tokenizer/tokenizer.model")


@functools.cache
def made() -> Made:
    """Made once a session; tests must not change it."""
    folder = home()
    write(folder / "chats.jsonl", [chat(i) for i in range(200)])
    # The vocabulary sees the template, so that prompts are short.
    write(folder / "rendered.jsonl", [{"text": rendered(chat(i))} for i in range(200)])
    write(folder / "pairs.jsonl", [pair(i) for i in range(48)])
    write(folder / "prompts.jsonl", [prompt(i) for i in range(32)])
    recipe = Recipe("rl", base_stages(folder))
    ready = Experiment(recipe, folder / "runs")
    with devices(1):
        for stage in ready.in_order():
            ready.run(stage)
    return Made(folder, folder / "runs")


@functools.cache
def _keep() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="easylm-rl-tests-")


def home() -> Path:
    """The folder in which the run is (or will be) made."""
    return Path(_keep().name)


def experiment(out: Path, *stages: Stage, mesh: str = "fsdp=-1", decode_mesh: str | None = None) -> Experiment:
    """A run of its own below `out` in which all but `stages` is done."""
    recipe = Recipe("rl", (*base_stages(home()), *stages), mesh, decode_mesh)
    return Experiment(recipe, copy_of_run(out))


def common(**more: Any) -> dict[str, Any]:
    """Fields of a stage that a test does not care about."""
    fields = {
        "init": "sft", "data": prompts(home()), "batch": 8, "steps": 2, "optimizer": RATE,
        "sampling": Sampling(NEW, slots=8), "checkpoints": Checkpoints(every=1, latest=2),
        "reward": Reward(verifier="rl_kit:of_prompt", missing_end=None),
    }  # fmt: skip
    return {**fields, **more}


def ppo(name: str = "ppo", **more: Any) -> PPO:
    return PPO(name, **common(**{"reward": Reward(model="reward", missing_end=-2.0), "mini_batch": 4, **more}))


def grpo(name: str = "grpo", **more: Any) -> GRPO:
    return GRPO(name, **common(**{"batch": 4, "samples": 2, **more}))


def online_dpo(name: str = "online", **more: Any) -> OnlineDPO:
    return OnlineDPO(name, **common(**{"batch": 4, "samples": 3, **more}))


CLOCKS = ("seconds", "per_second", "goodput", "mfu", "time")  # what of a metrics line differs from run to run


def without_clocks(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not any(clock in name for clock in CLOCKS)}


def lines(folder: Path) -> list[dict[str, Any]]:
    """A stage's metrics by step, without clocks."""
    return [without_clocks(line) for line in read_metrics(folder)]


def finished(ready: Experiment, name: str) -> Path:
    """The folder of a stage, which is run first if it is not done."""
    stage = ready.recipe.stage(name)
    if ready.done(stage) is None:
        ready.run(stage)
    return ready.folder(name)


def loop_of(ready: Experiment, name: str) -> RolloutLoop:
    """The loop of a stage, put together and not begun."""
    stage = ready.recipe.stage(name)
    ready.folder(name).mkdir(parents=True, exist_ok=True)
    return RolloutLoop(rl_stage.make_job(stage, ready))


class Silent:
    """A monitor that tells nobody."""

    def phase(self, *_: Any):
        return contextlib.nullcontext()


@contextlib.contextmanager
def begun(loop: RolloutLoop) -> Iterator[RLState]:
    """The state before the first rollout, for tests that take the steps themselves."""
    loop.monitor = Silent()
    with jax.set_mesh(loop.job.mesh):
        yield loop.job.fresh_state()


def params_of(ready: Experiment, name: str, prefix: str = "params") -> dict[str, np.ndarray]:
    """What a finished stage saved under `prefix`, by dotted name."""
    step = store.resolve(ready.folder(name))
    names = [leaf for leaf in store.read_manifest(step).leaves if leaf.startswith(f"{prefix}.")]
    return arrays.read_arrays(step, names)


def nested_params(ready: Experiment, name: str) -> dict[str, Any]:
    """A finished stage's parameters as the model knows them."""
    flat = {leaf.removeprefix("params."): array for leaf, array in params_of(ready, name).items()}
    return trees.unflatten(flat)


def other_tokenizer(folder: Path) -> str:
    """A vocabulary of the same size that numbers its tokens otherwise."""
    texts = (" ".join(reversed(rendered(chat(i)).split(" "))).swapcase() for i in range(200))
    train_sentencepiece(texts, 300, folder / "other", symbols=MARKERS)
    return f"sp:{folder / 'other' / 'tokenizer.model'}"


def copies(tree: Any) -> Any:
    """Host copies, which nothing that is donated can change."""
    return jax.tree.map(lambda leaf: np.array(jax.device_get(leaf)), tree)


def a_rollout(
    prompt_lengths: list[int], lengths: list[int], ended: list[bool] | None = None, width: int = NEW, seed: int = 0
) -> Rollout:
    """Made-up responses of these lengths behind prompts of those; token ids from 1 to 99."""
    rng = np.random.default_rng(seed)
    rows = len(lengths)
    real = np.arange(width)[None] < np.array(lengths)[:, None]
    numbers = [np.where(real, rng.normal(size=(rows, width)), 0).astype(np.float32) for _ in range(3)]
    asked = np.zeros((rows, max(prompt_lengths)), np.int32)
    for row, n in enumerate(prompt_lengths):
        asked[row, :n] = rng.integers(1, 100, n)
    return rollout.Rollout(
        prompts=asked, prompt_lengths=np.array(prompt_lengths, np.int32), prompt_index=np.arange(rows, dtype=np.int32),
        responses=np.where(real, rng.integers(1, 100, (rows, width)), 0).astype(np.int32),
        lengths=np.array(lengths, np.int32), ended=np.array([True] * rows if ended is None else ended),
        sampler_logprobs=numbers[0], untruncated_logprobs=numbers[1], entropy=numbers[2],
        scores=np.zeros(rows, np.float32),
    )  # fmt: skip


def recipe_file(folder: Path, stages: str) -> Path:
    """A recipe for the command: the run's own stages, all done, and behind them these, written as in Python."""
    path = folder / "recipe.py"
    path.write_text(RECIPE.replace("{home}", str(home())).replace("{stages}", stages))
    return path


def copy_of_run(out: Path) -> Path:
    """A runs folder of its own in which what stands before reinforcement learning is done."""
    shutil.copytree(made().out, out, dirs_exist_ok=True)
    return out


def broken_reward(folder: Path) -> str:
    """A reward model of which every score is NaN, as `run:<folder>`."""
    ready = Experiment(Recipe("rl", base_stages(home())), made().out)
    step = store.resolve(ready.folder("reward"))
    params = nested_params(ready, "reward")
    params["score"]["kernel"] = np.full_like(params["score"]["kernel"], np.nan)
    with Checkpointer(folder / "checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(1, {"params": params}, store.read_meta(step))
    return f"run:{folder}"
