"""Benchmarks by name: their prompts, sampling settings and verifiers.

    easylm eval runs/quickstart/sft --task ifbench --data IFBench_test.jsonl
    Evaluate("table", tasks=(tasks.gsm8k(tokenizer, "tulu"), tasks.ifbench(tokenizer, "tulu")), …)

Each is a function of a tokenizer and a chat template, since prompts are rendered for a model. `path` replaces the
published set by a file with the same columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from easylm_jax.config import DataSpec, Sampling, Source, Task

PROMPT = 2048  # maximum prompt length in tokens; no prompt of these sets is longer

# Number of prompts, of instructions, and of instructions in the groups of Table 2 (spec ifbench §3, §6.4).
IFEVAL = (541, 834, {"case": 89, "detectable": 210, "keywords": 163, "length": 143})
IFBENCH = (300, 344, {"count": 65, "format": 98, "words": 89, "sentence": 28})
GROUPS = {
    "case": "change_case", "detectable": "detectable_content detectable_format", "keywords": "keywords",
    "length": "length_constraints", "count": "count", "format": "format", "words": "words", "sentence": "sentence",
}  # fmt: skip


def gsm8k(tokenizer: str, template: str, path: str | None = None) -> Task:
    """GSM8K: 1,319 problems, zero-shot, greedy, 512 tokens; the last number is the answer (spec tulu3 §6.1)."""
    source = Source(path) if path else Source("hf:openai/gsm8k:test", subset="main")
    return Task("GSM8K", _prompts(source, tokenizer, template, "answer"), "gsm8k", Sampling(512, temperature=0.0))


def math500(tokenizer: str, template: str, path: str | None = None) -> Task:
    """MATH-500, greedy, 3,072 tokens, with the grader of Spurious Rewards (spec spurious_rewards §6)."""
    source = Source(path) if path else Source("hf:HuggingFaceH4/MATH-500:test")
    return _competition("MATH-500", source, tokenizer, template, Sampling(3072, temperature=0.0), 1)


def amc(tokenizer: str, template: str, path: str | None = None) -> Task:
    """83 problems of the AMC: the mean over 8 responses at temperature 0.6, and pass@8 (spec spurious §6)."""
    source = Source(path) if path else Source("hf:AI-MO/aimo-validation-amc")
    return _competition("AMC", source, tokenizer, template, Sampling(3072, temperature=0.6), 8)


def aime2024(tokenizer: str, template: str, path: str | None = None) -> Task:
    """30 problems of AIME 2024, with the settings of `amc`."""
    source = Source(path) if path else Source("hf:HuggingFaceH4/aime_2024")
    return _competition("AIME 2024", source, tokenizer, template, Sampling(3072, temperature=0.6), 8)


def aime2025(tokenizer: str, template: str, path: str | None = None) -> Task:
    """30 problems of AIME 2025, with the settings of `amc`; published after the models of the papers."""
    source = Source(path) if path else Source("hf:math-ai/aime25:test")
    return _competition("AIME 2025", source, tokenizer, template, Sampling(3072, temperature=0.6), 8)


def ifeval(
    tokenizer: str, template: str, path: str | None = None, *, categories: bool = False, version: str = "r26"
) -> Task:
    """IFEval: 541 prompts with 25 kinds of instructions; see `instructions`."""
    source = Source(path or "hf:google/IFEval")
    return instructions("IFEval", source, tokenizer, template, IFEVAL, categories=categories, version=version)


def ifbench(
    tokenizer: str, template: str, path: str | None = None, *, categories: bool = False, version: str = "r26"
) -> Task:
    """IFBench: 300 prompts with 58 kinds of instructions; see `instructions`."""
    source = Source(path or "hf:allenai/IFBench_test")
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
    return Task(name, data, verifier, Sampling(2048, temperature=0.0), also=tuple(also))


def _competition(
    name: str, source: Source, tokenizer: str, template: str, sampling: Sampling, samples: int
) -> Task:  # fmt: skip
    """Problems with short answers; a further column is the share of responses with Python (spec spurious §6)."""
    data = _prompts(source, tokenizer, template, "answer")
    also = (("python", "python"),)
    return Task(name, data, "math(style='spurious')", sampling, samples=samples, also=also)


def _prompts(source: Source, tokenizer: str, template: str, *keep: str) -> DataSpec:
    return DataSpec((source,), tokenizer, PROMPT, kind="prompts", template=template, keep=keep)


def with_sampling(task: Task, **changes: Any) -> Task:
    """The task with changed sampling settings, such as `max_new_tokens=10_240, stop_strings=("</answer>",)`."""
    return dataclasses.replace(task, sampling=dataclasses.replace(task.sampling, **changes))


# A new benchmark is a function and a line here: the function, or its "module:function".
TASKS: dict[str, Callable[..., Task] | str] = {
    "gsm8k": gsm8k,
    "math500": math500,
    "amc": amc,
    "aime2024": aime2024,
    "aime2025": aime2025,
    "ifeval": ifeval,
    "ifbench": ifbench,
}
