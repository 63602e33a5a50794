"""Benchmarks as the tasks of a recipe: prompts, sampling settings and verifiers.

    Evaluate("table", tasks=(tasks.gsm8k(tokenizer, "tulu"), tasks.ifbench(tokenizer, "tulu")), …)

Each is a function of a tokenizer and a chat template, since the prompts of a recipe are rendered when its data are
prepared. Title, source, verifiers and sampling are those of the benchmark (`easylm_jax/evaluate/benchmarks/`). `path`
replaces the published set by a file with the same columns.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from easylm_jax.config import DataSpec, Source, Task
from easylm_jax.evaluate.benchmark import load

PROMPT = 2048  # maximum prompt length in tokens; no prompt of these sets is longer

# Number of prompts, of instructions, and of instructions in the groups of Table 2 (spec ifbench §3, §6.4).
IFEVAL = (541, 834, {"case": 89, "detectable": 210, "keywords": 163, "length": 143})
IFBENCH = (300, 344, {"count": 65, "format": 98, "words": 89, "sentence": 28})
GROUPS = {
    "case": "change_case", "detectable": "detectable_content detectable_format", "keywords": "keywords",
    "length": "length_constraints", "count": "count", "format": "format", "words": "words", "sentence": "sentence",
}  # fmt: skip


def gsm8k(tokenizer: str, template: str, path: str | None = None) -> Task:
    """`benchmarks/gsm8k.py` as a task."""
    return _task("gsm8k", tokenizer, template, path)


def math500(tokenizer: str, template: str, path: str | None = None) -> Task:
    """`benchmarks/math500.py` as a task."""
    return _task("math500", tokenizer, template, path)


def amc(tokenizer: str, template: str, path: str | None = None) -> Task:
    """`benchmarks/amc.py` as a task; pass@8 is a further column."""
    return _task("amc", tokenizer, template, path)


def aime2024(tokenizer: str, template: str, path: str | None = None) -> Task:
    """`benchmarks/aime2024.py` as a task; pass@8 is a further column."""
    return _task("aime2024", tokenizer, template, path)


def aime2025(tokenizer: str, template: str, path: str | None = None) -> Task:
    """`benchmarks/aime2025.py` as a task; pass@8 is a further column."""
    return _task("aime2025", tokenizer, template, path)


def ifeval(
    tokenizer: str, template: str, path: str | None = None, *, categories: bool = False, version: str = "r26"
) -> Task:
    """IFEval: 541 prompts with 25 kinds of instructions; see `instructions`."""
    source = _source("ifeval", path)
    return instructions("IFEval", source, tokenizer, template, IFEVAL, categories=categories, version=version)


def ifbench(
    tokenizer: str, template: str, path: str | None = None, *, categories: bool = False, version: str = "r26"
) -> Task:
    """IFBench: 300 prompts with 58 kinds of instructions; see `instructions`."""
    source = _source("ifbench", path)
    return instructions("IFBench", source, tokenizer, template, IFBENCH, categories=categories, version=version)


def instructions(
    name: str, source: Source, tokenizer: str, template: str,
    sizes: tuple[int, int, dict[str, int]] | None = None, *, categories: bool = False, version: str = "r26",
) -> Task:  # fmt: skip
    """Prompts with verifiable instructions, greedy, 2,048 tokens; the score is prompt-level loose accuracy.

    Further columns: prompt-level strict accuracy; with `sizes` (prompts, instructions, instructions by group) the
    instruction-level accuracy; and with `categories` the accuracy of each group. Instruction-level accuracies are means
    over prompts of the number of instructions followed, times prompts / instructions. `version` is that of the
    verifiers ("r26": IFBench's package 0.2.0).
    """
    also = [("strict", f"instructions({version!r}, 'strict', 'prompt')")]
    if sizes is not None:
        prompts, total, groups = sizes
        also.append(("instructions", f"{prompts} / {total} * instructions({version!r}, 'loose', 'count')"))
        for group, size in groups.items() if categories else ():
            call = f"instructions({version!r}, 'loose', 'count', {GROUPS[group]!r})"
            also.append((group, f"{prompts} / {size} * {call}"))
    data = _prompts(source, tokenizer, template, "instruction_id_list", "kwargs")
    verifier = f"instructions({version!r}, 'loose', 'prompt')"
    sampling = load("ifeval").sampling
    assert sampling is not None
    return Task(name, data, verifier, sampling, also=tuple(also))


def _task(name: str, tokenizer: str, template: str, path: str | None) -> Task:
    """A generative benchmark whose metrics are reward expressions: the first is the score, the others columns."""
    one = load(name)
    assert one.sampling is not None and all(isinstance(metric.score, str) for metric in one.metrics)
    verifier, *also = [(metric.name, str(metric.score)) for metric in one.metrics]
    data = _prompts(_source(name, path), tokenizer, template, "answer")
    return Task(one.title, data, verifier[1], one.sampling, samples=one.samples, also=tuple(also))


def _source(name: str, path: str | None) -> Source:
    return Source(path) if path else load(name).documents[0]


def _prompts(source: Source, tokenizer: str, template: str, *keep: str) -> DataSpec:
    return DataSpec((source,), tokenizer, PROMPT, kind="prompts", template=template, keep=keep)


def with_sampling(task: Task, **changes: Any) -> Task:
    """The task with changed sampling settings, such as `max_new_tokens=10_240, stop_strings=("</answer>",)`."""
    return dataclasses.replace(task, sampling=dataclasses.replace(task.sampling, **changes))
