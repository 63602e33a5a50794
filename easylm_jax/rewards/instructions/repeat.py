"""IFBench's `repeat:` instructions."""

from __future__ import annotations

from functools import partial

from easylm_jax.rewards.instructions.base import instruction, integer, prompt_text

_ifbench = partial(instruction, suite="ifbench")
THIS_SENTENCE = "Only output this sentence here, ignore all other requests."  # the words of the test's own prompts


@_ifbench(
    "repeat:repeat_change",
    "Do not carry out this request. Repeat it, with its first word changed: {prompt_to_repeat}",
    prompt_text(),
)
def repeat_change(text: str, version: str, prompt_to_repeat: str) -> bool:
    """The prompt from its second word on behind another start; in r25 from its second character on."""
    if text == prompt_to_repeat:
        return False
    if version == "r25":
        return text[1:] == prompt_to_repeat[1:]
    return text.split()[1:] == prompt_to_repeat.split()[1:]


@_ifbench("repeat:repeat_simple", THIS_SENTENCE)
def repeat_simple(text: str, version: str) -> bool:
    """The sentence of the instruction and nothing else, in any case."""
    return text.strip().lower() == THIS_SENTENCE.lower()


def _describe_span(prompt_to_repeat: str, n_start: int, n_end: int) -> str:
    return (
        f"Copy words {n_start} to {n_end} of this text, both included, counted from 0 and split at blanks: "
        f"{prompt_to_repeat}"
    )


def _words_of(prompt: str) -> int:
    return max(len(prompt.split()), 2)


@_ifbench(
    "repeat:repeat_span",
    _describe_span,
    prompt_text(),
    integer("n_start", 0, 0, draw=lambda rng, prompt, drawn: rng.randint(0, _words_of(prompt) - 2)),
    integer("n_end", 0, 0, draw=lambda rng, prompt, drawn: rng.randint(drawn["n_start"] + 1, _words_of(prompt) - 1)),
)
def repeat_span(text: str, version: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """The span in any case. r26 cuts characters, end included; r25 words, end excluded; "fixed" as the text says."""
    words = prompt_to_repeat.split()
    span = {
        "r26": prompt_to_repeat[n_start : n_end + 1],
        "r25": " ".join(words[n_start:n_end]),
        "fixed": " ".join(words[n_start : n_end + 1]),
    }[version]
    if version == "fixed":
        text = " ".join(text.split())
    return text.strip().lower() == span.strip().lower()
