"""Initial models and evaluations of IF-RLVR: IFEval and IFBench (arXiv 2507.02833, Sections 3 and 5).

Prompt-level loose accuracy of greedy responses: 541 prompts of IFEval, 300 of IFBench, with the verifiers of IFBench's
package 0.2.0 ("r26"). The paper used an earlier version, which differs by about 0.3 points:
`suites.table(version="r25")`. The standard error of a difference on 300 prompts is about 3.5 points.

Departs from the paper: the verifiers are those of package 0.2.0; the paper used an earlier version.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Compute, Entry, Evaluate, Published, Source, Task
from easylm_jax.evaluate import tasks

HEADLINE = "instructions('r26', 'loose', 'prompt')"


@dataclasses.dataclass(frozen=True)
class Policy:
    """An initial model and its chat template. `response`: the most tokens of a response in training."""

    key: str
    title: str
    init: str
    template: str
    response: int = 2048

    @property
    def thinks(self) -> bool:
        """Whether it is a base model that learns to reason first."""
        return self.template == "think"

    @property
    def tokenizer(self) -> str:
        """The tokenizer of the model."""
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
    """IFEval: 541 prompts with 25 instructions, all of which are used in training."""
    return _asked(tasks.ifeval(policy.tokenizer, policy.template, categories=categories, version=version), policy)


def ifbench(policy: Policy, *, categories: bool = False, version: str = "r26") -> Task:
    """IFBench: 300 prompts with 58 instructions, none of which is used in training."""
    return _asked(tasks.ifbench(policy.tokenizer, policy.template, categories=categories, version=version), policy)


def multi_turn(policy: Policy) -> tuple[Task, ...]:
    """The same instructions in a second turn that asks to rewrite a response: 1,774 and 1,387 conversations."""
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
    """GSM8K, to measure regressions."""
    return _asked(tasks.gsm8k(policy.tokenizer, policy.template), policy)


def _asked(task: Task, policy: Policy) -> Task:
    """Greedy decoding with up to `policy.response` tokens, as in training."""
    stops = ("</answer>",) if policy.thinks else ()
    return tasks.with_sampling(task, max_new_tokens=policy.response, stop_strings=stops, slots=384)


def before(policy: Policy) -> Entry:
    """The policy before training."""
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
    """Evaluates the policy before training and `entries` on IFEval, IFBench and `further` tasks."""
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
