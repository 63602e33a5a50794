"""What IF-RLVR starts from and is judged by: IFEval and IFBench (arXiv 2507.02833, Sections 3 and 5).

Accuracies by prompt, loose, of greedy answers: 541 prompts of IFEval, 300 of IFBench, by the checks of IFBench's
package 0.2.0 ("r26"). The paper's own numbers were made with its forerunner, about 0.3 points away, which is
`suites.table(version="r25")`. The standard error of a difference on 300 prompts is about 3.5 points.

Departs from the paper: the checks are those of package 0.2.0; the paper's are of its forerunner.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Compute, Entry, Evaluate, Published, Source, Task
from easylm_jax.evaluate import tasks

HEADLINE = "instructions('r26', 'loose', 'prompt')"


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model that IF-RLVR starts from, and how it is talked to. `response`: tokens of its answers in training."""

    key: str
    title: str
    init: str
    template: str
    response: int = 2048

    @property
    def thinks(self) -> bool:
        """Whether it is a base model that reasons before it answers."""
        return self.template == "think"

    @property
    def tokenizer(self) -> str:
        """Its own."""
        return self.init


def _policies(*policies: Policy) -> dict[str, Policy]:
    return {policy.key: policy for policy in policies}


POLICIES = _policies(
    Policy("tulu3-sft", "Tülu-3-8B-SFT", "hf:allenai/Llama-3.1-Tulu-3-8B-SFT", "tulu"),
    Policy("tulu3-dpo", "Tülu-3-8B-DPO", "hf:allenai/Llama-3.1-Tulu-3-8B-DPO", "tulu"),
    Policy("qwen2.5-instruct", "Qwen2.5-7B-Instruct", "hf:Qwen/Qwen2.5-7B-Instruct", "qwen"),
    Policy("olmo2-instruct", "OLMo2-7B-Instruct", "hf:allenai/OLMo-2-1124-7B-Instruct", "olmo"),
    Policy("llama3.1", "Llama-3.1-8B", "hf:meta-llama/Llama-3.1-8B", "think", response=10_240),
    Policy("qwen2.5", "Qwen2.5-7B", "hf:Qwen/Qwen2.5-7B", "think", response=10_240),
    # Its context of 4096 tokens has no room for the paper's 10,240.
    Policy("olmo2", "OLMo2-7B", "hf:allenai/OLMo-2-1124-7B", "think", response=2048),
)


def ifeval(policy: Policy, *, categories: bool = False, version: str = "r26") -> Task:
    """IFEval: 541 prompts with 25 kinds of instructions, all of which are trained on."""
    return _asked(tasks.ifeval(policy.tokenizer, policy.template, categories=categories, version=version), policy)


def ifbench(policy: Policy, *, categories: bool = False, version: str = "r26") -> Task:
    """IFBench: 300 prompts with 58 kinds of instructions, none of which is trained on."""
    return _asked(tasks.ifbench(policy.tokenizer, policy.template, categories=categories, version=version), policy)


def multi_turn(policy: Policy) -> tuple[Task, ...]:
    """The same instructions in the second turn, where an answer is to be rewritten: 1,774 and 1,387 conversations."""
    return tuple(
        _asked(
            tasks.instructions(
                f"{name}, multi-turn", Source("hf:allenai/IFBench_multi-turn:test", subset=subset), policy.tokenizer,
                policy.template,
            ),
            policy,
        )
        for name, subset in (("IFEval", "ifeval_constraints"), ("IFBench", "ifbench_constraints"))
    )  # fmt: skip


def gsm8k(policy: Policy) -> Task:
    """Grade-school maths, to see what is lost."""
    return _asked(tasks.gsm8k(policy.tokenizer, policy.template), policy)


def _asked(task: Task, policy: Policy) -> Task:
    """Greedily. Chat models have 2,048 tokens; a model that reasons has as many as it was trained with."""
    stops = ("</answer>",) if policy.thinks else ()
    return tasks.with_sampling(task, max_new_tokens=policy.response, stop_strings=stops, slots=384)


def before(policy: Policy) -> Entry:
    """The policy as it is."""
    return Entry(policy.title, (policy.init,))


def table(
    name: str,
    title: str,
    policy: Policy,
    entries: tuple[Entry, ...],
    published: tuple[Published, ...] = (),
    *,
    further: tuple[Task, ...] = (),
    categories: bool = False,
    version: str = "r26",
) -> Evaluate:
    """The policy before and `entries` after training, on IFEval, IFBench and `further` tasks."""
    both = (
        ifeval(policy, categories=categories, version=version), ifbench(policy, categories=categories, version=version)
    )  # fmt: skip
    return Evaluate(
        name,
        title=title,
        tasks=(*both, *further),
        entries=(before(policy), *entries),
        published=published,
        compute=Compute(dtype="bfloat16"),
    )
