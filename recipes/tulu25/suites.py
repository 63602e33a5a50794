"""What the policies of Tülu 2.5 are judged by here: GSM8K and IFEval, two of the eleven benchmarks of arXiv 2406.09279
(Section 2.3).

The other nine (MMLU, BBH, HumanEval+, MBPP+, TruthfulQA, ToxiGen, XSTest, AlpacaEval 1 and 2) are not built, so no row
of ours has the paper's six categories or their average; the published ones are printed beside. The score of a row is
GSM8K, the only one of the two that is a column of the paper's tables; IFEval, a third of "Instruction", stands beside.

IFEval as the paper asks it: 541 prompts, greedily, 2,048 tokens, all instructions of a prompt followed, loose.

Departs from the paper: for GSM8K it shows eight worked examples in the user's turn and puts "Answer:" in front of the
reply, on 200 problems drawn at random. Here the problem stands alone, and all 1,319 are asked: on 200 the standard
error is 3.5 points, on all 1.4. `gsm8k(paper=True)` draws 200, though not the same ones.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Compute, Entry, Evaluate, Published, Sampling, Task
from easylm_jax.evaluate import tasks as benchmarks
from recipes.tulu25.data import PROMPT, TOKENIZER
from recipes.tulu25.stages import SFT

GSM8K_TEST = 1_319
PAPER_SUBSET = 200
BASE = Entry("Tülu 2 SFT", (SFT["13b"],))  # what the policies start from


def gsm8k(*, paper: bool = False) -> Task:
    """Grade-school maths, greedy, 512 tokens: is the last number of the reply the right one?"""
    task = benchmarks.gsm8k(TOKENIZER, "tulu25")
    (source,) = task.data.sources
    source = dataclasses.replace(source, count=PAPER_SUBSET if paper else None)
    data = dataclasses.replace(task.data, sources=(source,), sequence_length=PROMPT, seed=42)
    return dataclasses.replace(task, data=data)


def ifeval() -> Task:
    """Prompts with instructions that a program checks, by the checks of IFBench's package (`evaluate/tasks.py`)."""
    return benchmarks.ifeval(TOKENIZER, "tulu25")


def best_of(reward: str, samples: int = 16) -> Task:
    """GSM8K with the reply that a reward model likes best of `samples`, drawn as PPO draws them."""
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
    """`base`, the SFT model, and `entries` on `tasks`; the first is the score. Divergence is measured from `base`."""
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
