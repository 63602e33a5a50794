"""What a benchmark is: one small file of `easylm_jax/evaluate/benchmarks/`, which is registered by being there.

    documents → prompts → requests → responses → scores of each document → a mean with its standard error

The file holds `BENCHMARK`, and optionally `SETTINGS`, a table of other ways to ask the same documents by name:
`arc_challenge` and `arc_challenge:mc`. It says where the documents are published; nobody else's text is copied into it.

    BENCHMARK = Benchmark(
        title="SciQ",
        documents=(Source("hf:allenai/sciq:test"),),
        columns=("question", "correct_answer", "distractor1", "distractor2", "distractor3"),
        request="loglikelihood",
        prompt=lambda document: f"Question: {document['question']}\\nAnswer:",
        options=lambda document: [f" {document[name]}" for name in ANSWERS],
        label=lambda document: 0,
        metrics=(Metric("acc", accuracy),),
    )
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate import benchmarks
from models.errors import UserError

Document = Mapping[str, Any]
Request = Literal["generate", "loglikelihood", "loglikelihood_rolling", "judge"]


@dataclasses.dataclass(frozen=True)
class Response:
    """What a model answered on one document; the fields of another kind of request are empty.

    Attributes:
        texts: the generated texts, one for each sample, without what follows a stop string.
        answers: what `Benchmark.extract` found in each text; the texts themselves without it.
        options: the continuations that were scored.
        logprobs: Σ log P of each option given its context, in nats; of a rolling request, of the whole text.
        greedy: whether each option is what greedy decoding would have given.
        tokens: number of tokens of each option; of a rolling request, of the text.
        unconditional: Σ log P of each option given `Benchmark.unconditional`; empty where that is None.
        bytes: number of UTF-8 bytes of the text of a rolling request.
        replies: what a judge replied about each text.
        cut: number of tokens that the prompt lost at its beginning, because the model's context was too short.
    """

    texts: tuple[str, ...] = ()
    answers: tuple[Any, ...] = ()
    options: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    tokens: tuple[int, ...] = ()
    unconditional: tuple[float, ...] = ()
    bytes: tuple[int, ...] = ()
    replies: tuple[str, ...] = ()
    cut: int = 0


class Scored(NamedTuple):
    """What a metric gave for one document: a number, or a numerator and a denominator for the aggregate "ratio"."""

    group: str
    value: Any


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number for each document, and how those of all documents become one."""

    name: str
    """Its name in tables, such as "acc"."""
    score: Callable[[Any, Response], Any] | str
    """`(label, response)` → the number of a document, where `label` is what `Benchmark.label` gave; with
    `of_document`, `(document, response)`. A text is a reward expression (docs/rlvr.md) of each generated text, whose
    mean over the samples is the number."""
    aggregate: Callable[[Sequence[Scored]], tuple[float, float]] | Literal["mean", "macro", "ratio"] = "mean"
    """"mean" of the documents; "macro", the mean of the groups' means; "ratio", Σ numerator / Σ denominator where
    `score` gives pairs. A function gives a value and its standard error."""
    samples: Callable[[list[float]], float] | None = None
    """With a reward expression: makes the number of a document from the verdicts of its samples (pass@k); None for
    their mean."""
    over: Callable[[Any], float] | None = None
    """With "ratio" and a reward expression: the denominator of a document, given its label."""
    of_document: bool = False
    """Whether `score` reads the whole document instead of its label."""
    unit: str = "share"
    """"share" (printed in percent), or what the number is in, such as "bits per byte"."""
    lower: bool = False
    """Whether less is better."""


class Reported(NamedTuple):
    """A number that was published: of which model, and where; in the metric's unit (a share from 0 to 1)."""

    model: str
    score: float
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Solved examples that stand before the question (few-shot)."""

    sources: tuple[Source, ...]
    """Where they are read."""
    ids: tuple[int | str, ...] = ()
    """Which ones, in order: row numbers of the source, or with `key` values of that column. Empty: the first ones."""
    key: str | None = None
    """The column that `ids` names."""
    same_group: bool = False
    """Whether they are of the question's own group (MMLU's subject)."""
    read: Callable[[Document], Iterable[Document]] | None = None
    """Makes examples from a record of the source; None: as the benchmark reads its documents."""
    prompt: Callable[[Document], str] | None = None
    """The question of an example; None: as the benchmark's."""
    target: Callable[[Document], str] | None = None
    """What follows it; None: as the benchmark's."""


def itself(record: Document) -> Iterable[Document]:
    """The record as the one document that it holds."""
    return (record,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Documents, how they are asked, and how answers are scored."""

    title: str
    """The name of its column."""
    documents: tuple[Source, ...]
    """Where the documents are published; `--task NAME=FILE` reads a file with the same columns instead."""
    size: int | None = None
    """How many documents are published there, as `easylm eval --list` shows it; None for files of one's own."""
    columns: tuple[str, ...]
    """The columns that a record must have."""
    request: Request
    """What a model is asked for: a text, log-probabilities of given continuations ("loglikelihood") or of the whole
    document ("loglikelihood_rolling"), or a text that a judge scores."""
    prompt: Callable[[Document], str]
    """The question; for a rolling request, the text itself."""
    metrics: tuple[Metric, ...]
    """The first one is the benchmark's score."""
    label: Callable[[Document], Any] = lambda document: None
    """What a response is compared with: the number of the right option, or the answer's text."""
    read: Callable[[Document], Iterable[Document]] = itself
    """Makes documents from a record of the source."""
    sample: tuple[int, int] | None = None
    """(number, seed) of the documents that are asked, drawn by Python's `random.Random(seed).sample`; None for all."""
    group: Callable[[Document], str] | None = None
    """The subject or domain of a document; the score of each group is reported too."""
    options: Callable[[Document], Sequence[str]] | None = None
    """The continuations of a log-likelihood request, with the space before them where there is one."""
    contexts: Callable[[Document], Sequence[str]] | None = None
    """The question of each option, where they differ (WinoGrande); in place of `prompt`."""
    unconditional: str | None = None
    """A context without the question, such as "Answer:", under which the options are scored too."""
    target: Callable[[Document], str] | None = None
    """What follows the prompt in a solved example; None: the option that `label` numbers."""
    shots: int = 0
    """Number of solved examples."""
    examples: Examples | None = None
    """Where they come from."""
    description: Callable[[Document], str] | str = ""
    """What stands before the first example."""
    separator: str = "\n\n"
    """What stands after each example."""
    chat: bool = False
    """Whether the prompt is a user's turn, rendered by the model's chat template; otherwise plain text."""
    multi_turn: bool = False
    """Whether in a chat each example is a turn of the user and one of the assistant; otherwise one user turn holds the
    examples and the question."""
    system: str | None = None
    """A system turn."""
    assistant_prefix: str = ""
    """The beginning of the response, which the model continues."""
    sampling: Sampling | None = None
    """How texts are generated."""
    samples: int = 1
    """Texts for each document."""
    extract: Callable[[str, Document], Any] | None = None
    """Finds the answer in a text; None where there is none."""
    judge: Callable[[Document, str], list[dict[str, str]]] | None = None
    """The conversation in which a judge is asked about a text; its reply is in `Response.replies`."""
    classified: Callable[[Document, str], str] | None = None
    """What an encoder classifier reads in its place (`--judge hf-classifier:…`); its replies are "yes" and "no". None
    where a language model must judge."""
    harmful: Callable[[Document], bool] | None = None
    """Of a safety benchmark: whether a prompt is harmful, so that `evaluate.guarded` knows what is an attack."""
    images: Callable[[Document], Sequence[Any]] | None = None
    """The pictures that a generated response is about, as `models.molmo.decode.read` takes them; paths are relative to
    the folder of `--task NAME=FILE`."""
    max_crops: int = 36
    """The most crops of a picture: Molmo was evaluated with 36, on counting and pointing with 12 (spec molmo §3.4)."""
    published: tuple[Reported, ...] = ()
    """Published numbers, with their sources."""

    def __post_init__(self):
        needs = {"loglikelihood": "options", "generate": "sampling", "judge": "judge"}.get(self.request)
        if needs is not None and getattr(self, needs) is None:
            raise UserError(f"benchmark {self.title}: a {self.request} request needs {needs}")
        if self.request == "judge" and self.sampling is None:
            raise UserError(f"benchmark {self.title}: a judge request needs sampling")
        if self.images is not None and self.request not in ("generate", "judge"):
            raise UserError(f"benchmark {self.title}: a {self.request} request has no pictures")
        if not self.metrics:
            raise UserError(f"benchmark {self.title}: give at least one metric")
        if self.shots and self.examples is None:
            raise UserError(f"benchmark {self.title}: {self.shots} examples are asked for; say where they come from")

    @property
    def metric(self) -> Metric:
        """The metric that is the benchmark's score."""
        return self.metrics[0]

    def example_target(self, document: Document) -> str:
        """What follows the prompt in a solved example."""
        if self.target is not None:
            return self.target(document)
        assert self.options is not None
        return self.options(document)[self.label(document)]


def names() -> tuple[str, ...]:
    """The names of all benchmarks, without their further settings; imports none of them."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(benchmarks.__path__)))


@functools.cache
def settings(name: str) -> Mapping[str, Benchmark]:
    """The settings of a benchmark by their full names; the benchmark itself is the first."""
    module = importlib.import_module(f"{benchmarks.__name__}.{name}")
    return {name: module.BENCHMARK} | {f"{name}:{key}": one for key, one in getattr(module, "SETTINGS", {}).items()}


def everything() -> Iterator[tuple[str, Benchmark]]:
    """Every benchmark in every setting, by full name."""
    for name in names():
        yield from settings(name).items()


def load(name: str) -> Benchmark:
    """The benchmark `name` or `name:setting`.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    first, _, setting = name.partition(":")
    if first not in names():
        near = difflib.get_close_matches(first, names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "easylm eval --list names them all"
        raise UserError(f"no benchmark {name!r}; {hint}")
    found = settings(first)
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1, cutoff=0.0)
        raise UserError(f"benchmark {first} has no setting {setting!r}; did you mean {near[0]!r}?")
    return found[name]
