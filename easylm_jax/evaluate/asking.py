"""From the documents of a benchmark to token ids: reading, solved examples, chat turns, continuations."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from easylm_jax.config import Ask, Source
from easylm_jax.data import templates
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from easylm_jax.data.templates import Piece
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.data.tokenizer_template import resolve as resolve_template
from easylm_jax.data.tokenizer_template import roles_of
from easylm_jax.evaluate.benchmark import Benchmark, Document, load
from models.errors import UserError

Messages = list[dict[str, str]]
PLAIN = "none"  # the template's name for prompts as plain text


@dataclasses.dataclass(frozen=True)
class Question:
    """A document and its prompt: plain text, or the turns of a chat; `prefix` begins the response."""

    number: int
    document: Document
    prompt: str | Messages
    prefix: str = ""

    @property
    def shown(self) -> str | Messages:
        """The prompt as it is kept with the results."""
        if not self.prefix:
            return self.prompt
        if isinstance(self.prompt, str):
            return self.prompt + self.prefix
        return [*self.prompt, {"role": "assistant", "content": self.prefix}]


def resolve(ask: Ask) -> Benchmark:
    """The benchmark of a column, with the settings that replace its own.

    Raises:
        UserError: there is no such benchmark, or a setting does not fit it.
    """
    benchmark = load(ask.benchmark)
    changes: dict[str, Any] = {}
    if ask.shots is not None:
        if ask.shots and benchmark.examples is None:
            raise UserError(f"benchmark {ask.benchmark} has no solved examples to show; leave --shots out")
        changes["shots"] = ask.shots
    if ask.samples is not None:
        changes["samples"] = ask.samples
    if ask.max_crops is not None:
        if benchmark.images is None:
            raise UserError(f"benchmark {ask.benchmark} asks about no pictures; leave --max-crops out")
        changes["max_crops"] = ask.max_crops
    asked = {name: getattr(ask, name) for name in ("max_new_tokens", "temperature") if getattr(ask, name) is not None}
    if ask.stop_strings:
        asked["stop_strings"] = (*(benchmark.sampling.stop_strings if benchmark.sampling else ()), *ask.stop_strings)
    if asked and benchmark.sampling is not None:
        changes["sampling"] = dataclasses.replace(benchmark.sampling, **asked)
    benchmark = dataclasses.replace(benchmark, **changes)
    if benchmark.samples > 1 and benchmark.sampling is not None and benchmark.sampling.temperature == 0:
        raise UserError(
            f"task {ask.benchmark}: {benchmark.samples} greedy responses to a prompt would all be the same; give a "
            f"--temperature above 0{'' if ask.samples is None else ', or --samples 1'}"
        )
    return benchmark


def questions(ask: Ask, benchmark: Benchmark) -> list[Question]:
    """The documents of a benchmark with their prompts, at most `ask.limit` of them.

    Raises:
        UserError: the documents or the solved examples cannot be read, or lack a column.
    """
    sources = benchmark.documents if ask.file is None else (_local(ask.file, ask.benchmark),)
    records = _documents(benchmark, sources, ask.benchmark, benchmark.read)
    if benchmark.sample is not None:
        every, (size, seed) = list(records), benchmark.sample
        records = random.Random(seed).sample(every, size) if len(every) > size else every
    found = list(itertools.islice(records, ask.limit))
    if not found:
        raise UserError(f"task {ask.benchmark}: there is no document in {', '.join(s.path for s in sources)}")
    solved = _Solved(ask, benchmark)
    chat = benchmark.chat and ask.template != PLAIN
    made = []
    for number, (document, where) in enumerate(found):
        try:
            made.append(_question(number, document, benchmark, solved.of(document), chat))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"task {ask.benchmark}: {where} is not as the published set ({type(error).__name__}: {error}); give a "
                "file with the columns of the published set"
            ) from None
    return made


def _local(path: str, name: str) -> Source:
    if not Path(path).expanduser().exists():
        raise UserError(f"no file {path}; give a file with the documents of {name}")
    folder = Path(path).expanduser()
    saved = folder.is_dir() and ((folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file())
    return Source(f"hf:{path}" if saved else path)


def _documents(benchmark: Benchmark, sources: Sequence[Source], name: str, read) -> Iterable[tuple[Document, str]]:
    for source in sources:
        for record, where in read_records(source):
            if isinstance(record, BadRecord):
                raise UserError(f"task {name}: {record}")
            record = {"_subset": source.subset or _stem(source.data_files or where), **record}
            missing = [column for column in benchmark.columns if column not in record]
            if missing:
                raise UserError(
                    f"task {name}: {where} has no column {missing[0]!r} (it has {_columns(record)}); give a file with "
                    "the columns of the published set"
                )
            for document in read(record):
                yield document, where


def _stem(where: str | tuple[str, ...]) -> str:
    """The name of the file that a record is in, without its endings: what names a task whose files are one each."""
    name = where if isinstance(where, str) else where[0]
    return re.split(r" row | record |:\d", name)[0].rpartition("/")[2].partition(".")[0]


def _columns(record: Document) -> str:
    return ", ".join(name for name in record if not name.startswith("_"))


class _Solved:
    """The solved examples of a benchmark."""

    def __init__(self, ask: Ask, benchmark: Benchmark):
        self.benchmark, self.name, examples = benchmark, ask.benchmark, benchmark.examples
        self.examples: list[Document] = []
        if not benchmark.shots:
            return
        assert examples is not None
        sources = examples.sources if ask.shots_from is None else (_local(ask.shots_from, ask.benchmark),)
        read = examples.read or benchmark.read
        columned = benchmark if examples.read is None else dataclasses.replace(benchmark, columns=())
        records = (document for document, _ in _documents(columned, sources, ask.benchmark, read))
        if examples.ids and ask.shots_from is not None:  # a file of one's own: the authors' examples, or else the first
            every = list(records)
            self.examples = self._found(every) or every[: benchmark.shots]
        elif examples.ids:
            self.examples = self._named(records)
        elif examples.same_group:
            self.examples = list(records)
        else:
            self.examples = list(itertools.islice(records, benchmark.shots))
        if len(self.examples) < benchmark.shots:
            raise UserError(
                f"task {ask.benchmark}: {benchmark.shots} examples are asked for, there are {len(self.examples)} in "
                f"{', '.join(source.path for source in sources)}"
            )

    def _named(self, records: Iterable[Document]) -> list[Document]:
        found = self._found(records)
        if not found:
            raise UserError(f"task {self.name}: the authors' examples are not all there; give the published set")
        return found

    def _found(self, records: Iterable[Document]) -> list[Document]:
        """The examples that the authors chose, in their order; none where one is missing."""
        examples = self.benchmark.examples
        assert examples is not None
        ids = examples.ids[: self.benchmark.shots]
        found: dict[Any, Document] = {}
        for number, record in enumerate(records):
            key = number if examples.key is None else record.get(examples.key)
            if key in ids:
                found.setdefault(key, record)
        return [found[key] for key in ids] if len(found) == len(ids) else []

    def of(self, document: Document) -> list[tuple[str, str]]:
        """(question, solution) of each example that stands before a document."""
        benchmark, examples = self.benchmark, self.benchmark.examples
        if not benchmark.shots:
            return []
        assert examples is not None
        chosen = self.examples
        if examples.same_group:
            assert benchmark.group is not None
            chosen = [one for one in chosen if benchmark.group(one) == benchmark.group(document)]
            if len(chosen) < benchmark.shots:
                raise UserError(f"task {self.name}: group {benchmark.group(document)!r} has {len(chosen)} examples")
        ask, solve = examples.prompt or benchmark.prompt, examples.target or benchmark.example_target
        return [(ask(one), solve(one)) for one in chosen[: benchmark.shots]]


def _question(
    number: int, document: Document, benchmark: Benchmark, solved: list[tuple[str, str]], chat: bool
) -> Question:
    description = benchmark.description if isinstance(benchmark.description, str) else benchmark.description(document)
    own = benchmark.prompt(document)
    benchmark.label(document)  # a wrong column is found before anything is asked
    prefix = benchmark.assistant_prefix
    if not (chat and benchmark.multi_turn):
        before = description + "".join(ask + solution + benchmark.separator for ask, solution in solved)
    if not chat:
        return Question(number, document, before + own, prefix)
    messages = [] if benchmark.system is None else [{"role": "system", "content": benchmark.system}]
    if not benchmark.multi_turn:
        return Question(number, document, [*messages, {"role": "user", "content": before + own}], prefix)
    for turn, (ask, solution) in enumerate([*solved, (own, "")]):
        messages.append({"role": "user", "content": (description if turn == 0 else "") + ask})
        if turn < len(solved):
            messages.append({"role": "assistant", "content": (prefix + solution).strip()})
    return Question(number, document, messages, prefix)


class Encoder:
    """Encodes the questions of one benchmark for one model.

    Args:
        tokenizer: of the model.
        template: the chat template of chat prompts; None where all are plain text.
        add_bos: whether plain text starts with the BOS token.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None, add_bos: bool):
        self.tokenizer, self.template = tokenizer, template
        self.start = [tokenizer.bos_id] if add_bos and tokenizer.bos_id is not None else []

    def prompt(self, question: Question) -> list[int]:
        """The tokens that a generated response follows."""
        return self._encode(question.prompt, question.prefix)

    def pair(self, prompt: str | Messages, prefix: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a context and of a continuation: those of both together, cut where the context alone ends.

        White space at the end of the context is counted to the continuation, as a tokenizer joins it with the word
        that follows.
        """
        context = prefix or (prompt if isinstance(prompt, str) else "")
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        if prefix:
            prefix = kept
        elif isinstance(prompt, str):
            prompt = kept
        before, whole = self._encode(prompt, prefix), self._encode(prompt, prefix + continuation)
        return before, whole[len(before) :]

    def plain(self, text: str) -> list[int]:
        """The tokens of a text."""
        return self.start + self.tokenizer.encode(text)

    def _encode(self, prompt: str | Messages, prefix: str) -> list[int]:
        if isinstance(prompt, str):
            return self.plain(prompt + prefix)
        assert self.template is not None
        roles = roles_of(self.template)
        strange = next((turn["role"] for turn in prompt if turn["role"] not in roles), None)
        if strange is not None:
            raise UserError(f"chat template {self.template} has no {strange} turn; it has {', '.join(roles)}")
        pieces = templates.generation_prompt(resolve_template(self.template, self.tokenizer), prompt)
        if prefix:
            pieces = [*pieces, Piece(prefix, None, len(prompt), False)]
        return templates.tokenize([pieces], self.tokenizer)[0][0].tolist()
