"""How questions with options are asked, which many benchmarks share (OLMES, arXiv 2406.08446).

Question: …            ranked ("rc"): the options' texts are scored and not shown
Answer:

Question: …            multiple choice ("mc"): they are shown, and their letters are scored
 A. …
 B. …
Answer:

letters(3)                          [" A", " B", " C"]
with_options("Question: …", texts)  the multiple-choice form
ranked(…), SETTINGS of it           `rc` (no examples), `rc5`, `mc`, `mc5` (five of the authors' examples), `bpb`
"""

from __future__ import annotations

import dataclasses
import hashlib
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Examples, Metric, Reported
from easylm_jax.evaluate.metrics.options import (
    accuracy,
    accuracy_per_character,
    accuracy_per_token,
    accuracy_unconditional,
    bits_per_byte,
)

BITS = Metric("bits_per_byte", bits_per_byte, unit="bits per byte", lower=True)
SCORES = {
    "acc": Metric("acc", accuracy),
    "acc_per_character": Metric("acc_per_character", accuracy_per_character),
    "acc_per_token": Metric("acc_per_token", accuracy_per_token),
    "acc_unconditional": Metric("acc_unconditional", accuracy_unconditional),
}
SAMPLE = (1000, 1234)  # OLMES asks so many documents of the larger sets, drawn with this seed


def letters(count: int) -> list[str]:
    """The first letters as continuations: " A", " B", …"""
    return [f" {letter}" for letter in string.ascii_uppercase[:count]]


def listed(texts: Iterable[str], form: str = " {letter}. {text}\n") -> str:
    """The options below each other, each with its letter."""
    return "".join(form.format(letter=string.ascii_uppercase[n], text=text) for n, text in enumerate(texts))


def question(text: str) -> str:
    """The ranked form of a question."""
    return f"Question: {text}\nAnswer:"


def with_options(asked: str, texts: Iterable[str]) -> str:
    """The multiple-choice form: what is asked, the options with letters, "Answer:"."""
    return f"{asked}\n{listed(texts)}Answer:"


def digest(text: str) -> str:
    """A name for a text without the text: twelve hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A set of questions with options in the forms of OLMES.

    Attributes:
        title: of the column.
        documents: where the questions are published.
        columns: that a record must have.
        ask: the question without "Answer:" and options, as the multiple-choice form begins.
        texts: the options' texts.
        label: the number of the right one.
        score: which of `SCORES` is the score of the ranked form in OLMES, Table 5 of its paper.
        examples: where the solved examples are published.
        size: how many questions are published; None for files of one's own.
        ids: of the authors' five examples: values of the column `key`, or digests of their multiple-choice form.
        rank: the ranked form; None: `ask` and "Answer:".
        contexts: the ranked question of each option, where they differ.
        option: the continuation of an option's number in the ranked form; None: its text after a space.
        target: what follows a solved example in the ranked form; None: the right option's continuation.
        between: what stands between the question and the options in the multiple-choice form.
        sample: (number, seed) of the documents asked; None for all.
        group: the subject of a document.
        same_group: whether examples are of the question's own group.
        description: stands before the examples.
        published: numbers of the papers.
        macro: whether the score is the mean over the groups.
    """

    title: str
    documents: tuple[Source, ...]
    columns: tuple[str, ...]
    ask: Callable[[Document], str]
    texts: Callable[[Document], Sequence[str]]
    label: Callable[[Document], int]
    score: str
    examples: tuple[Source, ...]
    size: int | None = None
    ids: tuple[Any, ...] = ()
    key: str = "_digest"
    rank: Callable[[Document], str] | None = None
    contexts: Callable[[Document], Sequence[str]] | None = None
    option: Callable[[Document, int], str] | None = None
    target: Callable[[Document], str] | None = None
    between: str = ""
    sample: tuple[int, int] | None = None
    group: Callable[[Document], str] | None = None
    same_group: bool = False
    description: Callable[[Document], str] | str = ""
    published: tuple[Reported, ...] = ()
    macro: bool = False

    def chosen(self, document: Document) -> str:
        """The multiple-choice form of a question."""
        return with_options(self.ask(document) + self.between, self.texts(document))

    def _digested(self, record: Document) -> Iterable[Document]:
        return ({**record, "_digest": digest(self.chosen(record))},)

    def _metric(self, name: str) -> Metric:
        found = SCORES[name]
        return dataclasses.replace(found, aggregate="macro") if self.macro else found

    def settings(self) -> tuple[Benchmark, dict[str, Benchmark]]:
        """The benchmark (ranked, no examples) and its settings `rc5`, `mc`, `mc5` and `bpb`."""
        option = self.option or (lambda document, number: f" {self.texts(document)[number]}")
        first = self._metric(self.score)
        alone = self.contexts is None  # options that are equal texts in different contexts have no score of their own
        others = tuple(
            self._metric(name) for name in SCORES if name != self.score and (alone or name != "acc_unconditional")
        )
        digests = self.key == "_digest" and bool(self.ids)
        examples = Examples(
            sources=self.examples, ids=self.ids, key=self.key if self.ids else None, same_group=self.same_group,
            read=self._digested if digests else None,
        )  # fmt: skip
        ranked = Benchmark(
            title=self.title, documents=self.documents, size=self.size, columns=self.columns, request="loglikelihood",
            prompt=self.rank or (lambda document: f"{self.ask(document)}\nAnswer:"), contexts=self.contexts,
            options=lambda document: [option(document, number) for number in range(len(self.texts(document)))],
            unconditional="Answer:" if alone else None, label=self.label, metrics=(first, *others, BITS),
            target=self.target, examples=examples, sample=self.sample, group=self.group, description=self.description,
            published=self.published,
        )  # fmt: skip
        chosen = dataclasses.replace(
            ranked, prompt=self.chosen, options=lambda document: letters(len(self.texts(document))), contexts=None,
            unconditional=None, target=None, metrics=(self._metric("acc"),),
        )  # fmt: skip
        return ranked, {
            "rc5": dataclasses.replace(ranked, shots=5),
            "mc": chosen,
            "mc5": dataclasses.replace(chosen, shots=5),
            "bpb": dataclasses.replace(ranked, metrics=(BITS,), unconditional=None),
        }


def gold_bits(benchmark: Benchmark, gold: Callable[[Document], str], shots: int | None = None) -> Benchmark:
    """A benchmark asked for the bits per byte of its published answer alone, as plain text: what a base model learns
    of a task shows in it long before it can solve it (spec olmo §16)."""
    return dataclasses.replace(
        benchmark, request="loglikelihood", options=lambda document: [gold(document)], label=lambda document: 0,
        metrics=(BITS,), chat=False, sampling=None, samples=1, extract=None, unconditional=None, contexts=None,
        published=(), target=benchmark.target or gold, shots=benchmark.shots if shots is None else shots,
    )  # fmt: skip


def asked_for_letter(letters: str, reasoning: bool = True) -> str:
    """The instruction of a multiple-choice question to a chat model, in this project's words: what is extracted is the
    sentence "the answer is (X)" that it asks for (spec tulu3 §8.2)."""
    reason = "Reason about the question briefly" if reasoning else "Choose an option"
    return f'{reason} and end with the sentence "Therefore, the answer is (X)", where X is one of {letters}.'


def letter_metric(aggregate: Any = "mean") -> Metric:
    """Whether the extracted letter is the label's."""
    return Metric("exact_match", lambda label, response: _share(label, response), aggregate)


def _share(label: str, response: Any) -> float:
    return sum(answer == label for answer in response.answers) / max(1, len(response.answers))
