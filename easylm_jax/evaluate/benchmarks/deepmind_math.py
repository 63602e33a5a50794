"""DeepMind Mathematics (arXiv 1904.01557): generated problems of 56 kinds; the mean of the kinds.

`tulu3` asks 100 problems of each kind, the first of its test set (the authors' own draw is not published), with
reasoning; answers are compared by value (spec tulu3 §8.2).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric, Reported, Response
from easylm_jax.rewards.maths import check_math

KINDS = (
    "algebra__linear_1d", "algebra__linear_1d_composed", "algebra__linear_2d", "algebra__linear_2d_composed",
    "algebra__polynomial_roots", "algebra__polynomial_roots_composed", "algebra__sequence_next_term",
    "algebra__sequence_nth_term", "arithmetic__add_or_sub", "arithmetic__add_or_sub_in_base",
    "arithmetic__add_sub_multiple", "arithmetic__div", "arithmetic__mixed", "arithmetic__mul",
    "arithmetic__mul_div_multiple", "arithmetic__nearest_integer_root", "arithmetic__simplify_surd",
    "calculus__differentiate", "calculus__differentiate_composed", "comparison__closest",
    "comparison__closest_composed", "comparison__kth_biggest", "comparison__kth_biggest_composed",
    "comparison__pair", "comparison__pair_composed", "comparison__sort", "comparison__sort_composed",
    "measurement__conversion", "measurement__time", "numbers__base_conversion", "numbers__div_remainder",
    "numbers__div_remainder_composed", "numbers__gcd", "numbers__gcd_composed", "numbers__is_factor",
    "numbers__is_factor_composed", "numbers__is_prime", "numbers__is_prime_composed", "numbers__lcm",
    "numbers__lcm_composed", "numbers__list_prime_factors", "numbers__list_prime_factors_composed",
    "numbers__place_value", "numbers__place_value_composed", "numbers__round_number",
    "numbers__round_number_composed", "polynomials__add", "polynomials__coefficient_named",
    "polynomials__collect", "polynomials__compose", "polynomials__evaluate", "polynomials__evaluate_composed",
    "polynomials__expand", "polynomials__simplify_power", "probability__swr_p_level_set",
    "probability__swr_p_sequence",
)  # fmt: skip
_SAID = re.compile(r"final answer is:?\s*(.+?)(?:\.\s*I hope it is correct|\.\s*$|$)", re.IGNORECASE | re.MULTILINE)
_MARKS = re.compile(r"^(?:\$+|\\\(|\\\[|\*\*)|(?:\$+|\\\)|\\\]|\*\*)$")


def _text(value: str | bytes) -> str:
    """A text of the published set, which holds the literals of byte strings (`b'…\\n'`)."""
    text = value.decode() if isinstance(value, bytes) else value
    return re.sub(r"(?:\\n)?'$", "", re.sub(r"^b'", "", text)).strip() if text.startswith("b'") else text.strip()


def _read(record: Document) -> Iterable[Document]:
    yield {"question": _text(record["question"]), "answer": _text(record["answer"]), "kind": record["_subset"]}


def _answer(text: str, document: Document) -> str:
    found = _SAID.findall(text)
    return _MARKS.sub("", (found[-1] if found else text).strip()).strip()


def _right(label: str, response: Response) -> float:
    """Whether an answer is the label's text, its truth value in other words, or mathematically equal to it."""
    words = {"yes": "true", "no": "false"}
    scores = [
        answer.lower() == label.lower() or words.get(answer.lower()) == label.lower()
        or check_math(answer.replace("**", "^"), label.replace("**", "^"))
        for answer in response.answers
    ]  # fmt: skip
    return sum(scores) / max(1, len(scores))


BENCHMARK = Benchmark(
    title="DeepMind Mathematics",
    documents=tuple(Source("hf:deepmind/math_dataset:test", subset=kind, limit=100) for kind in KINDS),
    size=100 * len(KINDS),
    columns=("question", "answer"),
    read=_read,
    group=lambda document: document["kind"],
    request="generate",
    prompt=lambda document: f"Problem:\n{document['question']}\n\nAnswer:",
    target=lambda document: f" {document['answer']}",
    label=lambda document: document["answer"],
    sampling=Sampling(64, temperature=0.0, stop_strings=("\n",)),
    extract=_answer,
    metrics=(Metric("exact_match", _right, "macro"),),
)
SETTINGS = {
    "tulu3": dataclasses.replace(
        BENCHMARK, chat=True, sampling=Sampling(2048, temperature=0.0),
        prompt=lambda document: (
            f"Solve this problem:\n{document['question']}\n\nShow your work and end with the sentence \"Therefore, the "
            "final answer is X. I hope it is correct.\", where X is the number, expression or letter alone. Write "
            "powers as x**2, products as 2*x, fractions as -2/7, and several solutions in ascending order as 2, 10."
        ),
        published=(
            Reported("Tülu 3 8B", 0.354, "arXiv 2411.15124, Table 33"),
            Reported("Tülu 3 70B", 0.498, "arXiv 2411.15124, Table 33"),
        ),
    ),
}  # fmt: skip
