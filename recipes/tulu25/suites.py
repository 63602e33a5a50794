"""The evaluations of Tülu 2.5: GSM8K and IFEval, two of the eleven benchmarks of arXiv 2406.09279 (Section 2.3).

Of the other nine most need a judge (TruthfulQA, ToxiGen, XSTest, AlpacaEval 1 and 2), programs that may run
(HumanEval+, MBPP+) or files (BBH's prompts); `easylm eval STAGE --suite tulu25` asks all eleven. So our rows have
neither the paper's six categories nor their average; published numbers are printed beside them. The score of a row is
GSM8K, the only one of the two that is a column of the paper's tables. IFEval, a third of the category "Instruction", is
a further column.

IFEval as in the paper: 541 prompts, greedy, 2,048 tokens, prompt-level loose accuracy.

Departs from the paper: for GSM8K the paper shows eight worked examples in the user turn, starts the response with
"Answer:", and uses 200 random problems. Here there are no examples, and all 1,319 problems are used: the standard error
is 3.5 points on 200 and 1.4 on all. `gsm8k(paper=True)` samples 200, but not the paper's.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Compute, Entry, Evaluate, Published, Sampling, Task
from easylm_jax.evaluate import tasks as benchmarks
from recipes.tulu25.data import PROMPT, TOKENIZER
from recipes.tulu25.stages import SFT

GSM8K_TEST = 1_319
PAPER_SUBSET = 200
BASE = Entry("Tülu 2 SFT", (SFT["13b"],))  # the initial model of all policies


def gsm8k(*, paper: bool = False) -> Task:
    """GSM8K, greedy, 512 tokens: the last number of the response must be correct."""
    task = benchmarks.gsm8k(TOKENIZER, "tulu25")
    (source,) = task.data.sources
    source = dataclasses.replace(source, count=PAPER_SUBSET if paper else None)
    data = dataclasses.replace(task.data, sources=(source,), sequence_length=PROMPT, seed=42)
    return dataclasses.replace(task, data=data)


def ifeval() -> Task:
    """IFEval with the verifiers of IFBench's package (`evaluate/tasks.py`)."""
    return benchmarks.ifeval(TOKENIZER, "tulu25")


def best_of(reward: str, samples: int = 16) -> Task:
    """GSM8K with the response of highest reward among `samples`, which are sampled as in PPO."""
    sampling = Sampling(512, temperature=0.7, top_k=50)
    return dataclasses.replace(
        gsm8k(), name=f"GSM8K, best of {samples} by {reward}", sampling=sampling, samples=samples, best_of=reward
    )


def table(
    name: str,
    title: str,
    entries: tuple[Entry, ...],
    published: tuple[Published, ...],
    tasks: tuple[Task, ...] = (gsm8k(), ifeval()),
    base: Entry = BASE,
) -> Evaluate:
    """Evaluates `base` and `entries` on `tasks`; the first task is the score. KL divergence is measured from `base`."""
    return Evaluate(
        name,
        title=title,
        tasks=tasks,
        entries=(base, *entries),
        reference=base.stages[0],
        published=published,
        compute=Compute(dtype="bfloat16"),
        average=(tasks[0].name,),
    )
