"""IFTrain's instructions on paragraphs, brackets and copies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from easylm_jax.rewards.instructions import tokens
from easylm_jax.rewards.instructions.base import instruction, integer, prompt_text, text
from easylm_jax.rewards.instructions.pieces import STARS, filled, starred_pieces

_iftrain = partial(instruction, suite="iftrain")
PHRASES = (
    "Small waves wear down the hardest stone",
    "Every long road begins behind one door",
    "Patient hands untie what haste has knotted",
    "Warm bread tastes best after cold work",
    "Old maps still guide young sailors home",
    "Quiet rivers carry the heaviest boats far",
    "Good neighbors share tools, fruit and news",
    "Bright lamps make the darkest corners small",
    "Nobody learns the tune by counting strings",
    "Early frost teaches farmers to read clouds",
)


@_iftrain("paragraphs:paragraphs", "Write two paragraphs, divided by ***")
def paragraphs(text: str, version: str) -> bool:
    """*** makes two pieces; a blank one is left out at either end, and fails between others."""
    pieces = filled(starred_pieces(text, version))
    return pieces is not None and len(pieces) == 2


@_iftrain("paragraphs:paragraphs2", "Write two paragraphs with a blank line between them.")
def paragraphs2(text: str, version: str) -> bool:
    """Two line breaks make two pieces; a blank one is left out at either end, and fails between others."""
    pieces = filled(text.split("\n\n"))
    return pieces is not None and len(pieces) == 2


@_iftrain("detectable_format:bigram_wrapping", "Wrap every two words in double angle brackets, <<like this>>.")
def bigram_wrapping(text: str, version: str) -> bool:
    """Words in pairs, each from << to >>. As published a last single word is not looked at."""
    words = text.split()
    if version == "fixed" and len(words) % 2:
        return False
    return all(a.startswith("<<") and b.endswith(">>") for a, b in zip(words[::2], words[1::2], strict=False))


@_iftrain("detectable_format:square_brackets", "Put every word in square brackets.")
def square_brackets(text: str, version: str) -> bool:
    """Every word between blanks is from [ to ]."""
    return all(word.startswith("[") and word.endswith("]") for word in text.split())


@_iftrain("detectable_format:sentence_hyphens", "Join your sentences with hyphens, without blanks around them.")
def sentence_hyphens(text: str, version: str) -> bool:
    """What hyphens divide are the sentences. As published, what one side has more than the other is not looked at."""
    expected = tokens.rule_sentences(text.replace("-", " "))
    pieces = text.split("-")
    if version == "fixed":
        pieces = text.strip().split("-")
        if len(pieces) != len(expected):
            return False
    return all(piece == piece.strip() == sentence for piece, sentence in zip(pieces, expected, strict=False))


def _same(text: str, other: str) -> bool:
    return text.strip().lower() == other.strip().lower()


@_iftrain("copy:copying_simple", "Do not answer this request, repeat it: {prompt_to_repeat}", prompt_text())
def copying_simple(text: str, version: str, prompt_to_repeat: str) -> bool:
    """The prompt and nothing else, in any case."""
    return _same(text, prompt_to_repeat)


@_iftrain("copy:copy", "Copy this request word for word and do nothing else: {prompt_to_repeat}", prompt_text())
def copy(text: str, version: str, prompt_to_repeat: str) -> bool:
    """The prompt and nothing else, in any case."""
    return _same(text, prompt_to_repeat)


@_iftrain(
    "copy:copying_multiple",
    f"Do not answer this request, repeat it {{N}} times with {STARS} in between: {{prompt_to_repeat}}",
    prompt_text(),
    integer("N", 2, 3),
)
def copying_multiple(text: str, version: str, prompt_to_repeat: str, N: int) -> bool:
    """N pieces, each the prompt in any case."""
    pieces = text.split(STARS)
    return len(pieces) == N and all(_same(piece, prompt_to_repeat) for piece in pieces)


def _describe_span(prompt_to_repeat: str, n_start: int, n_end: int) -> str:
    return (
        f"Copy characters {n_start} to {n_end} of this text, both included, counted from 0, and nothing else: "
        f"{prompt_to_repeat}"
    )


@_iftrain(
    "new:copy_span_idx",
    _describe_span,
    prompt_text(),
    integer("n_start", 0, 0, draw=lambda rng, prompt, drawn: rng.randint(0, max(len(prompt) - 2, 0))),
    integer("n_end", 0, 0, draw=lambda rng, prompt, drawn: rng.randint(drawn["n_start"] + 1, max(len(prompt) - 1, 1))),
)
def copy_span_idx(text: str, version: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """Those characters in any case. As published the last one is left out, though the text includes it."""
    return _same(text, prompt_to_repeat[n_start : n_end + (version == "fixed")])


@_iftrain(
    "copy:repeat_phrase",
    'Use the phrase "{phrase}" {small_n} times, each time with one word in its middle changed.',
    text("phrase", lambda rng, prompt, drawn: rng.choice(PHRASES), strip=True),
    integer("small_n", 2, 3),
)
def repeat_phrase(text: str, version: str, phrase: str, small_n: int) -> bool:
    """small_n spans from the phrase's first word to its last, as long as the phrase and different in one word.

    As published, all but the last of them may also be the phrase itself.
    """
    wanted = phrase.split()
    spans = _between(text, _exact(wanted[0], version, "{} "), _exact(wanted[-1], version, " {}"))
    found = [_differences(span.split(), wanted) for span in spans]
    allowed = {1} if version == "fixed" else {0, 1}
    return len(found) == small_n and found[-1:] == [1] and all(times in allowed for times in found)


def _exact(word: str, version: str, form: str) -> re.Pattern[str]:
    """What finds `word` in its case, in the surroundings of `form`."""
    return re.compile(form.format(tokens.pattern(word, version).pattern))


def _differences(words: list[str], wanted: list[str]) -> int | None:
    """In how many places two lists differ; None where they are not equally long."""
    return sum(a != b for a, b in zip(words, wanted, strict=True)) if len(words) == len(wanted) else None


def _between(text: str, first: re.Pattern[str], last: re.Pattern[str]) -> Iterator[str]:
    """The shortest spans from `first` to `last` within each line, both included, in time linear in the text."""
    for line in text.split("\n"):
        start = first.search(line)
        while start:
            end = last.search(line, start.end())
            if not end:
                break
            yield line[start.start() : end.end()]
            start = first.search(line, max(end.end(), start.start() + 1))
