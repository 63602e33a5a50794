"""IFEval's instructions on the content and format that a program can detect."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

from easylm_jax.rewards.instructions import tokens
from easylm_jax.rewards.instructions.base import instruction, integer, text
from easylm_jax.rewards.instructions.pieces import spans

_ifeval = partial(instruction, suite="ifeval")
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCES = ("```json", "```Json", "```JSON", "```")
_MARKERS = {"P.P.S": re.compile(r"p\.\s?p\.\s?s"), "P.S.": re.compile(r"p\.\s?s\.")}
_STAR_BULLET = re.compile(r"^[^\S\n]*\*[^*].*$", re.MULTILINE)
_HYPHEN_BULLET = re.compile(r"^[^\S\n]*-.*$", re.MULTILINE)
_BULLET = re.compile(r"^[^\S\n]*[*-][^\S\n]+\S", re.MULTILINE)


@_ifeval(
    "detectable_content:number_placeholders",
    "Use at least {num_placeholders} placeholders in square brackets, such as [address].",
    integer("num_placeholders", 1, 4),
)
def number_placeholders(text: str, version: str, num_placeholders: int) -> bool:
    """How many [...] there are on one line each; empty ones count, but not in "fixed"."""
    return sum(1 for span in spans(text, "[", "]") if version != "fixed" or span.strip()) >= num_placeholders


@_ifeval(
    "detectable_content:postscript",
    "Add a postscript at the end that starts with {postscript_marker}",
    text("postscript_marker", lambda rng, prompt, drawn: rng.choice(["P.S.", "P.P.S"]), strip=True),
)
def postscript(text: str, version: str, postscript_marker: str) -> bool:
    """The marker occurs, anywhere and in any case, also with blanks between its letters."""
    marker = _MARKERS.get(postscript_marker) or tokens.pattern(postscript_marker.lower(), version)
    return marker.search(text.lower()) is not None


@_ifeval(
    "detectable_format:number_bullet_lists",
    "Write exactly {num_bullets} bullet points, each on a line that starts with * or -",
    integer("num_bullets", 1, 5),
)
def number_bullet_lists(text: str, version: str, num_bullets: int) -> bool:
    """Lines that start with a single * or with -. In "fixed" a blank and a text must follow the mark."""
    if version == "fixed":
        return len(_BULLET.findall(text)) == num_bullets
    return len(_STAR_BULLET.findall(text)) + len(_HYPHEN_BULLET.findall(text)) == num_bullets


@_ifeval("detectable_format:constrained_response", f"Answer with one of these: {' '.join(_ANSWERS)}")
def constrained_response(text: str, version: str) -> bool:
    """One of the answers occurs; in "fixed" it is all there is."""
    return text.strip() in _ANSWERS if version == "fixed" else any(answer in text for answer in _ANSWERS)


@_ifeval(
    "detectable_format:number_highlighted_sections",
    "Highlight at least {num_highlights} passages with stars, *like this*.",
    integer("num_highlights", 1, 4),
)
def number_highlighted_sections(text: str, version: str, num_highlights: int) -> bool:
    """How many *...* and **...** on one line each are not blank between their stars."""
    single = (found.strip("*") for found in re.findall(r"\*[^\n*]*\*", text))
    double = re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(1 for found in [*single, *double] if found.strip()) >= num_highlights


@_ifeval(
    "detectable_format:multiple_sections",
    "Write {num_sections} sections, each headed by {section_spliter} and its number, such as {section_spliter} 1",
    text("section_spliter", lambda rng, prompt, drawn: rng.choice(["Section", "SECTION"]), strip=True),
    integer("num_sections", 1, 5),
)
def multiple_sections(text: str, version: str, section_spliter: str, num_sections: int) -> bool:
    """How many heads "Section 1" there are, anywhere and in their case."""
    return sum(1 for _ in _section(section_spliter, version).finditer(text)) >= num_sections


def _section(splitter: str, version: str) -> re.Pattern[str]:
    if version != "fixed":
        try:
            return re.compile(rf"\s?{splitter}\s?\d+\s?")
        except re.error:
            pass
    return re.compile(rf"\s?{re.escape(splitter)}\s?\d+\s?")


@_ifeval("detectable_format:json_format", "Write everything as JSON; a fenced code block may be around it.")
def json_format(text: str, version: str) -> bool:
    """JSON as Python parses it, with or without a code fence. "fixed" accepts objects and lists only, and no NaN."""
    bare = text.strip()
    for fence in _FENCES:
        bare = bare.removeprefix(fence)
    parse_constant = _refuse if version == "fixed" else None
    try:
        value = json.loads(bare.removesuffix("```").strip(), parse_constant=parse_constant)
    except (ValueError, RecursionError):
        return False
    return version != "fixed" or isinstance(value, dict | list)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


@_ifeval("detectable_format:title", "Give a title in double angle brackets, such as <<a title>>.")
def title(text: str, version: str) -> bool:
    """From the first << of a line to its last >>, something but brackets and blanks."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False
