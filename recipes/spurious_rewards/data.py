"""Models and problems of Spurious Rewards (arXiv 2506.10947, Section 2 and appendix on data and prompts).

The training problems are those of DeepScaleR, 40,308 with short answers; the first 100 of each set of labels are held
out. Nothing is appended to a problem: the system turn of the chat template, or the preamble for base models, asks for a
boxed answer.

Departs from the paper: problems above 1,024 tokens are left out, not truncated; the prompts of the appendix are
paraphrased, since the paper describes them without printing them; the preamble for base models has real line breaks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from easylm_jax.config import DataSpec, MakeData, Source
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from models.errors import UserError

DEEPSCALER = "hf:agentica-org/DeepScaleR-Preview-Dataset"
MATH500 = "hf:HuggingFaceH4/MATH-500:test"
HELD_OUT = 100
PROMPT, ANSWER = 1024, 3072  # tokens; longer problems are left out (the paper's code truncates them)
STOP = "</answer>"  # ends responses of base models; it stays in the response


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model to be trained and its chat template; "r1" is the preamble for base models."""

    key: str
    title: str
    init: str
    template: str

    @property
    def r1(self) -> bool:
        """Whether it is a base model, which answers between tags."""
        return self.template == "r1"

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings of its responses, besides the end token."""
        return (STOP,) if self.r1 else ()


_ALL = (
    Policy("qwen2.5-math-7b", "Qwen2.5-Math-7B", "hf:Qwen/Qwen2.5-Math-7B", "qwen_math"),
    Policy("qwen2.5-math-1.5b", "Qwen2.5-Math-1.5B", "hf:Qwen/Qwen2.5-Math-1.5B", "qwen_math"),
    Policy("qwen2.5-7b", "Qwen2.5-7B", "hf:Qwen/Qwen2.5-7B", "qwen"),
    Policy("qwen2.5-1.5b", "Qwen2.5-1.5B", "hf:Qwen/Qwen2.5-1.5B", "qwen"),
    Policy("olmo2-7b", "OLMo2-7B", "hf:allenai/OLMo-2-1124-7B", "r1"),
    Policy("olmo2-7b-sft", "OLMo2-7B-SFT", "hf:allenai/OLMo-2-1124-7B-SFT", "olmo"),
    Policy("llama3.1-8b", "Llama3.1-8B", "hf:meta-llama/Llama-3.1-8B", "r1"),
    Policy("llama3.1-8b-instruct", "Llama3.1-8B-Instruct", "hf:meta-llama/Llama-3.1-8B-Instruct", "llama31"),
    Policy("llama3.2-3b", "Llama3.2-3B", "hf:meta-llama/Llama-3.2-3B", "r1"),
    Policy("llama3.2-3b-instruct", "Llama3.2-3B-Instruct", "hf:meta-llama/Llama-3.2-3B-Instruct", "llama31"),
    Policy("qwen2.5-math-7b-instruct", "Qwen2.5-Math-7B-Instruct", "hf:Qwen/Qwen2.5-Math-7B-Instruct", "qwen_math"),
    Policy("qwen2.5-7b-instruct", "Qwen2.5-7B-Instruct", "hf:Qwen/Qwen2.5-7B-Instruct", "qwen"),
    Policy("tulu3-8b", "Llama-3.1-Tulu-3-8B", "hf:allenai/Llama-3.1-Tulu-3-8B", "tulu"),
)
POLICIES = {policy.key: policy for policy in _ALL}
MAIN = ("qwen2.5-math-7b", "qwen2.5-7b", "llama3.1-8b-instruct", "olmo2-7b")  # Figure 1
FURTHER = ("qwen2.5-math-1.5b", "qwen2.5-1.5b", "olmo2-7b-sft", "llama3.1-8b", "llama3.2-3b", "llama3.2-3b-instruct")
TEN = (*MAIN, *FURTHER)  # Figures 2 and 3
TRAINED = (
    "qwen2.5-math-7b-instruct",
    "qwen2.5-7b-instruct",
    "tulu3-8b",
)  # with reinforcement learning before, Figure 19
# Models whose majority votes another model is trained on: Llama's base models use those of the instruct models.
LABELLERS = {"llama3.1-8b": "llama3.1-8b-instruct", "llama3.2-3b": "llama3.2-3b-instruct"}


def problems(policy: Policy, source: Source, *, template: str | None = None) -> DataSpec:
    """One problem per row in the policy's chat template, with its label."""
    return DataSpec(
        (source,), policy.init, PROMPT, kind="prompts", template=template or policy.template, keep=("answer",)
    )  # fmt: skip


def deepscaler(policy: Policy, path: str = DEEPSCALER) -> DataSpec:
    """The training problems with their own labels; `path` may be a file instead of the hub's data set."""
    return problems(policy, Source(path, skip=HELD_OUT))


def all_problems(policy: Policy, path: str = DEEPSCALER) -> DataSpec:
    """All problems without chat template, as in the paper's labelling script (Section 2)."""
    return problems(policy, Source(path), template="plain")


def labelled(policy: Policy, stage: str, file: str) -> DataSpec:
    """The training problems with the pseudo-labels of a majority-vote stage."""
    return problems(policy, Source(f"stage:{stage}/{file}.jsonl", skip=HELD_OUT))


def math500(policy: Policy) -> DataSpec:
    """The problems of MATH-500."""
    return problems(policy, Source(MATH500))


# Rows that are written before training: the problem of one-shot training, and problems with the appendix's prompts.

ONE = MakeData("one-problem", function="recipes.spurious_rewards.data:one_problem")


def one_problem(seed: int, path: str = DEEPSCALER) -> dict[str, list[dict[str, Any]]]:
    """The problem of one-shot training (Wang et al. 2025, arXiv 2504.20571: wind on a sail, 12.8), 64 times: the
    prompts of one rollout."""
    for record in _records(path):
        text = record.get("problem", record.get("prompt", ""))
        if str(record.get("answer")).strip() == "12.8" and "sail" in text and "wind" in text:
            row = {"messages": [{"role": "user", "content": text}], "answer": "12.8"}
            return {"problem.jsonl": [row] * 64}
    raise UserError(f"one-shot: {path} has no problem of wind on a sail with the answer 12.8")


_FILLER = (
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore "
    "magna aliqua. Ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo "
    "consequat."
)
_HELPER = "You are a helpful assistant."
# Appendix, section on prompts: system turn (None: the template's own), text before and after a problem. The paper
# describes these prompts; their exact wording is not known.
PROMPTS: dict[str, tuple[str | None, str, str]] = {
    "default": (None, "", ""),
    "Math Problem": (_HELPER, "Math Problem: ", ""),
    "SimpleRL-Zoo": (
        _HELPER, "", "\nPlease reason step by step, and put your final answer within \\boxed{}.",
    ),
    "Sober": (
        None, "Solve this mathematics problem step by step. The last line of the response must read 'Therefore, the "
        "final answer is: $\\boxed{ANSWER}$. I hope it is correct', without the quotes, where ANSWER is the final "
        "number or expression alone.\n\n", "",
    ),
    "lorem ipsum": (_FILLER, f"{_FILLER}\n\n", ""),
}  # fmt: skip


def with_prompt(seed: int, prompt: str, path: str = MATH500, skip: int = 0) -> dict[str, list[dict[str, Any]]]:
    """`problems.jsonl`: problems with one of `PROMPTS`, with a system turn where it has one."""
    if prompt not in PROMPTS:
        raise UserError(f"no prompt {prompt!r}; there are {', '.join(PROMPTS)}")
    system, before, behind = PROMPTS[prompt]
    rows = []
    for number, record in enumerate(_records(path)):
        if number >= skip:
            text = record.get("problem", record.get("prompt"))
            turns = [] if system is None else [{"role": "system", "content": system}]
            messages = [*turns, {"role": "user", "content": f"{before}{text}{behind}"}]
            rows.append({"messages": messages, "answer": str(record["answer"])})
    return {"problems.jsonl": rows}


def asked(prompt: str, which: str) -> MakeData:
    """The stage that writes the problems of "train" (DeepScaleR) or "test" (MATH-500) with a prompt."""
    path, skip = {"train": (DEEPSCALER, HELD_OUT), "test": (MATH500, 0)}[which]
    return MakeData(
        f"{slug(prompt)}-{which}", function="recipes.spurious_rewards.data:with_prompt",
        arguments={"prompt": prompt, "path": path, "skip": skip},
    )  # fmt: skip


def slug(name: str) -> str:
    """A name in a form that is valid for a folder."""
    return name.lower().replace(", ", "-").replace(" ", "-")


def _records(path: str) -> Iterator[dict[str, Any]]:
    for record, where in read_records(Source(path)):
        if isinstance(record, BadRecord):
            raise UserError(f"{where}: {record}")
        yield dict(record)
