"""Chat templates by name: how the turns of a conversation are rendered as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from models.errors import UserError

Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Token:
    """A single vocabulary entry inside a template: "bos", "eos" or the literal name of a token.

    `otherwise` is used where the tokenizer lacks `name` (OLMo's vocabulary has one token for start and end of text).
    """

    name: str
    otherwise: str | None = None


BOS, EOS, CONTENT = Token("bos"), Token("eos"), Token("content")
_START, _END, _EOT = Token("<|start_header_id|>"), Token("<|end_header_id|>"), Token("<|eot_id|>")
_IM_START, _IM_END = Token("<|im_start|>"), Token("<|im_end|>")


@dataclasses.dataclass(frozen=True)
class Template:
    """A chat template.

    `start` begins the text, `turns[role]` are the pieces of a turn, `generation` begins a response to be sampled.
    `separator_at_end=False` leaves out what follows the end token of an assistant turn that is the last message.
    `strip` strips white space from contents. `default_system` is the system turn of conversations without one.
    `lead` stands before the content of a response and is trained with it.
    `thinks`: responses begin with reasoning, which `generation` opens with <think>. A response that is the last
    message continues from there; earlier ones keep only the text after their </think>.
    """

    turns: Mapping[str, tuple[str | Token, ...]]
    generation: tuple[str | Token, ...]
    start: tuple[str | Token, ...] = ()
    separator_at_end: bool = True
    strip: bool = False
    default_system: str | None = None
    thinks: bool = False
    lead: str = ""

    def turn(self, messages: Messages, number: int) -> tuple[tuple[str | Token, ...], str]:
        """The pieces of a turn of a conversation, and its content."""
        role, content = messages[number]["role"], messages[number]["content"]
        if role not in self.turns:
            raise UserError(f"the chat template has no {role} turn; leave such messages out or take another template")
        parts = self.turns[role]
        if self.thinks and role == "assistant":
            if number < len(messages) - 1:
                content = content.rpartition("</think>")[2]
            else:
                parts, content = (*self.generation, CONTENT, EOS), content.removeprefix("<think>")
        content = content.strip() if self.strip else content
        return parts, self.lead + content if role == "assistant" else content


def _llama3_turn(role: str) -> tuple[str | Token, ...]:
    return (_START, role, _END, "\n\n", CONTENT, _EOT)


def _chatml_turn(role: str) -> tuple[str | Token, ...]:
    return (_IM_START, f"{role}\n", CONTENT, _IM_END, "\n")


_TULU = Template(
    turns={
        "system": ("<|system|>\n", CONTENT, "\n"),
        "user": ("<|user|>\n", CONTENT, "\n"),
        "assistant": ("<|assistant|>\n", CONTENT, EOS, "\n"),
    },
    generation=("<|assistant|>\n",),
    separator_at_end=False,
)
_THINK = Template(
    turns={role: (f"<|{role}|>\n", CONTENT, "\n") for role in ("system", "user", "assistant")},
    generation=("<|assistant|>\n<think>",),
    start=(
        "What follows is a conversation with an assistant. Before it answers, the assistant reasons. It writes its "
        "reasoning between <think> and </think>, and then its answer between <answer> and </answer>.\n\n",
    ),
    thinks=True,
)
_ROLES = ("system", "user", "assistant")
_CHATML = Template(turns={role: _chatml_turn(role) for role in _ROLES}, generation=(_IM_START, "assistant\n"))
_LLAMA3 = Template(
    turns={role: _llama3_turn(role) for role in _ROLES},
    generation=(_START, "assistant", _END, "\n\n"),
    start=(BOS,),
    strip=True,
)
_LLAMA31_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024"

TEMPLATES: dict[str, Template] = {
    # Tülu 3 (arXiv 2411.15124): no BOS, contents as they are.
    "tulu": _TULU,
    # OLMo 2 instruct: BOS in front; in its vocabulary <|endoftext|> is both ends.
    "olmo": dataclasses.replace(_TULU, start=(Token("bos", otherwise="eos"),)),
    # Tülu 2 and 2.5 (arXiv 2406.09279): BOS in front, contents stripped.
    "tulu25": dataclasses.replace(_TULU, start=(BOS,), strip=True),
    "llama3": _LLAMA3,
    # Llama 3.1 instruct: its system turn has two dates, with or without further text.
    "llama31": dataclasses.replace(
        _LLAMA3,
        turns={**_LLAMA3.turns, "system": (_START, "system", _END, f"\n\n{_LLAMA31_DATES}\n\n", CONTENT, _EOT)},
        default_system="",
    ),
    "chatml": _CHATML,
    # Qwen 2.5: chatml with its own default system turn.
    "qwen": dataclasses.replace(
        _CHATML, default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    ),
    # Qwen 2.5 Math.
    "qwen_math": dataclasses.replace(
        _CHATML, default_system="Please reason step by step, and put your final answer within \\boxed{}."
    ),
    # Base models that learn to reason, for IF-RLVR (spec ifbench §6.3): a preamble; <think> begins the response.
    "think": _THINK,
    # The same with a preamble like that of DeepSeek-R1, which names both speakers (spec spurious_rewards §5).
    "r1": dataclasses.replace(
        _THINK,
        start=(
            "User and Assistant talk. User asks, and Assistant solves what is asked: it first thinks the solution "
            "through and then tells User the answer. What it thinks stands between <think> and </think>, the answer "
            "between <answer> and </answer>, so: <think> what Assistant thinks </think> <answer> the answer "
            "</answer>.\n\n",
        ),
    ),
    # Molmo (arXiv 2409.17146, spec molmo §7.1): fine-tuning with roles, and captions behind a style and a length.
    "molmo": Template(
        turns={"user": (" User: ", CONTENT), "assistant": (" Assistant:", CONTENT, EOS)},
        generation=(" Assistant:",),
        start=(Token("bos", otherwise="eos"),),
        lead=" ",
    ),
    "molmo_caption": Template(
        turns={"user": (" ", CONTENT), "assistant": (CONTENT, EOS)},
        generation=(),
        start=(Token("bos", otherwise="eos"),),
        lead=" ",
    ),
    # Prompt and completion concatenated: BOS + prompt + completion + EOS.
    "plain": Template(
        turns={"user": (CONTENT,), "assistant": (CONTENT, EOS)}, generation=(), start=(Token("bos", otherwise="eos"),)
    ),
}


def get_template(name: str) -> Template:
    """The template called `name`; `UserError` with the known names when there is none."""
    if name not in TEMPLATES:
        raise UserError(f"data: unknown template {name!r}; use one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
