"""Asks models the documents of benchmarks and keeps every response; `results` computes the scores from what is kept.

    <folder>/<task>-<digest>.jsonl    a line for each document: its prompt and the response, appended as they are known

A stopped evaluation reads what is there and asks the rest. The digest is of the model, the settings and the file; a
document whose prompt has changed since is asked again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from easylm_jax import decode
from easylm_jax.checkpoint.load import LoadedModel
from easylm_jax.config import Ask, fields
from easylm_jax.data.templates import end_tokens
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode.likelihood import loglikelihood, token_logprobs
from easylm_jax.evaluate.asking import PLAIN, Encoder, Question, questions, resolve
from easylm_jax.evaluate.benchmark import Benchmark, Response
from easylm_jax.evaluate.classifier import Classifier
from easylm_jax.evaluate.judges import ModeratorJudge
from easylm_jax.runtime import processes
from easylm_jax.runtime.files import write_lines
from easylm_jax.runtime.processes import log_once
from models import reading
from models.errors import UserError
from models.molmo.batch import with_pictures
from models.molmo.decode import is_inline, size_of
from models.molmo.image import layout, tokenize

AT_ONCE = {"generate": 256, "judge": 256, "loglikelihood": 64, "loglikelihood_rolling": 16}  # documents between writes
PICTURES_AT_ONCE = 32  # documents with pictures, whose crops are in memory
Judge = Callable[[Sequence[Any]], list[str]]  # conversations, or a classifier's texts → replies


@dataclasses.dataclass(frozen=True)
class Asked:
    """A benchmark that a model has been asked: its questions and the responses, in the order of the documents."""

    ask: Ask
    benchmark: Benchmark
    questions: list[Question]
    responses: list[Response]


def ask_model(
    model: LoadedModel, ask: Ask, folder: Path, *, identity: Any, seed: int = 0, longest_prompt: int | None = None,
    judge: Judge | None = None, progress: Callable[[int, int], None] | None = None,
    read: list[Question] | None = None,
) -> Asked:  # fmt: skip
    """Asks a model what is not yet kept in `folder`.

    Args:
        model: the model, on its mesh.
        ask: the benchmark and its settings.
        folder: where responses are kept.
        identity: what tells this model from others, in JSON's types.
        seed: of sampling; a response depends on it, its prompt and the document's number alone.
        longest_prompt: leaves out documents whose prompts have more tokens; None asks all.
        judge: answers the questions of a benchmark whose responses a model judges (`judges.judge_of`); one without an
            attribute `identity` is not told from others.
        progress: called with the numbers of documents answered and of all.
        read: the benchmark's questions, where they have been read already (`asking.questions`).

    Raises:
        UserError: the benchmark cannot be read, does not fit the model's context, or needs what is not given.
    """
    benchmark = resolve(ask)
    if benchmark.request == "judge":
        if judge is None:
            raise UserError(f"task {ask.benchmark}: its responses are scored by a judge; name one with --judge")
        if isinstance(judge, Classifier) and benchmark.classified is None:
            raise UserError(f"task {ask.benchmark}: a classifier cannot judge it; name a language model with --judge")
        if isinstance(judge, ModeratorJudge) and benchmark.harmful is None:
            raise UserError(f"task {ask.benchmark}: a moderator judges safety benchmarks alone; name a language model")
        identity = [identity, getattr(judge, "identity", None)]
    asked = _Model(model, ask, benchmark, seed, judge)
    found = asked.fitting(questions(ask, benchmark) if read is None else read, longest_prompt)
    path = folder / f"{ask.benchmark.replace(':', '-')}-{_digest(ask, identity, seed, longest_prompt)}.jsonl"
    kept = _kept(path, found)
    processes.barrier(f"read {path.name}")
    missing = [question for question in found if question.number not in kept]
    size = AT_ONCE[benchmark.request] if benchmark.images is None else PICTURES_AT_ONCE
    for start in range(0, len(missing), size):
        part = missing[start : start + size]
        responses = asked.answer(part)
        if processes.is_first_process():
            _append(path, part, responses)
        kept |= {question.number: response for question, response in zip(part, responses, strict=True)}
        if progress is not None:
            progress(len(kept), len(found))
    return Asked(ask, benchmark, found, [kept[question.number] for question in found])


def _digest(ask: Ask, identity: Any, seed: int, longest_prompt: int | None) -> str:
    files = [None if name is None else fingerprint(Path(name).expanduser()) for name in (ask.file, ask.shots_from)]
    settings = {
        name: value for name, value in fields.encode(ask).items() if name not in ("file", "shots_from", "limit")
    }
    return fields.digest([settings, files, identity, seed, longest_prompt])[:12]


def fingerprint(path: Path) -> str:
    if not path.is_file():
        return str(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(path: Path, found: Sequence[Question]) -> dict[int, Response]:
    """The responses of a file to the prompts as they are now, by number; a last line that was cut is dropped."""
    if not path.is_file():
        return {}
    shown = {question.number: question.shown for question in found}
    try:
        lines = list(reading.read_lines(path, last_may_be_cut=True))
        kept = {
            line["number"]: Response(**{name: _tuple(value) for name, value in line["response"].items()})
            for line in lines if shown.get(line["number"]) == line["prompt"]
        }  # fmt: skip
    except (reading.Damaged, LookupError, TypeError) as error:
        log_once(f"easylm: warning: {path} is damaged ({error}); its documents are asked again")
        lines, kept = [], {}
    if processes.is_first_process():
        write_lines(path, lines)  # without a line that was cut, so that more can be appended
    return kept


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _append(path: Path, asked: Sequence[Question], responses: Sequence[Response]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        for question, response in zip(asked, responses, strict=True):
            line = {"number": question.number, "prompt": question.shown, "response": filled(response)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def filled(response: Response) -> dict[str, Any]:
    values = {field.name: getattr(response, field.name) for field in dataclasses.fields(response)}
    return {name: value for name, value in values.items() if value and name != "answers"}


class _Model:
    """One benchmark's requests to one model."""

    def __init__(self, model: LoadedModel, ask: Ask, benchmark: Benchmark, seed: int, judge: Judge | None):
        self.model, self.ask, self.benchmark, self.seed, self.judge = model, ask, benchmark, seed, judge
        template = None
        if benchmark.chat and ask.template != PLAIN:
            template = ask.template or model.template
            if template is None:
                raise UserError(
                    f"task {ask.benchmark} asks in a chat, and the chat template of the model is not known; give it "
                    f"with --template, such as tulu, or --template {PLAIN} for plain text"
                )
        self.template = template
        self.encoder = Encoder(model.tokenizer, template, model.add_bos)
        if benchmark.images is not None and model.decoder.config.vision is None:
            raise UserError(f"task {ask.benchmark} asks about pictures, which a {model.decoder.config.family} sees not")

    def pictures(self, question: Question) -> list[Any]:
        """The pictures of a question, as `models.molmo.decode.read` takes them."""
        assert self.benchmark.images is not None
        folder = Path("." if self.ask.file is None else self.ask.file).expanduser().parent
        found = self.benchmark.images(question.document)
        return [folder / one if isinstance(one, str) and not is_inline(one) else one for one in found]

    def _length(self, question: Question) -> int:
        """Tokens of a prompt, those of its pictures among them; only headers of pictures are read."""
        length, vision = len(self.encoder.prompt(question)), self.model.decoder.config.vision
        if self.benchmark.images is None or vision is None:
            return length
        sizes = [size_of(one) for one in self.pictures(question)]
        return length + sum(len(layout(*size, self.benchmark.max_crops, vision).tokens) for size in sizes)

    def fitting(self, found: list[Question], longest: int | None) -> list[Question]:
        """The questions that the model's context has room for.

        Raises:
            UserError: a generated response has no room behind its prompt and `longest` leaves it in.
        """
        sampling = self.benchmark.sampling
        if sampling is None:
            return found
        if self.ask.cut_prompts and self.benchmark.images is not None:
            raise UserError(f"task {self.ask.benchmark}: prompts with pictures cannot be cut; leave --cut-prompts out")
        lengths = [self._length(question) for question in found]
        context, new = self.model.decoder.config.context, sampling.max_new_tokens
        if longest is not None:
            found = [one for one, length in zip(found, lengths, strict=True) if length <= longest]
            if not found:
                raise UserError(
                    f"task {self.ask.benchmark}: none of the {len(lengths):,} prompts is short enough; raise "
                    "--longest-prompt"
                )
            lengths = [length for length in lengths if length <= longest]
        if max(lengths) + new > context and not (self.ask.cut_prompts and new < context):
            room = context - max(lengths)
            ways = [f"allow at most {room} new tokens with --max-new-tokens"] if room > 0 else []
            ways += [f"leave longer prompts out with --longest-prompt {context - new}"] if context - new > 1 else []
            ways += ["drop the beginnings of prompts with --cut-prompts"] if new < context else []
            raise UserError(
                f"task {self.ask.benchmark}: a prompt of {max(lengths)} tokens and {new} new ones exceed the model's "
                f"context of {context} tokens; {' or '.join(ways) or 'use a model with a longer context'}"
            )
        return found

    def answer(self, asked: Sequence[Question]) -> list[Response]:
        """The responses to some questions."""
        if self.benchmark.request == "loglikelihood":
            return self._choose(asked)
        if self.benchmark.request == "loglikelihood_rolling":
            return self._rolling(asked)
        answered = self._generate(asked)
        if self.benchmark.request == "generate":
            return answered
        judge, samples = self.judge, self.benchmark.samples
        about: Callable[[Any, str], Any] | None = self.benchmark.judge
        if isinstance(judge, Classifier):
            about = self.benchmark.classified
        elif isinstance(judge, ModeratorJudge):
            about = lambda document, text: {"prompt": self.benchmark.prompt(document), "response": text}  # noqa: E731
        assert judge is not None and about is not None
        replies = judge([about(q.document, text) for q, own in zip(asked, answered, strict=True) for text in own.texts])
        return [
            dataclasses.replace(own, replies=tuple(replies[row * samples : (row + 1) * samples]))
            for row, own in enumerate(answered)
        ]

    def _generate(self, asked: Sequence[Question]) -> list[Response]:
        sampling, model, samples = self.benchmark.sampling, self.model, self.benchmark.samples
        assert sampling is not None
        prompts, seen = [self.encoder.prompt(question) for question in asked], {}
        room = model.decoder.config.context - sampling.max_new_tokens
        lost = [max(0, len(prompt) - room) if self.ask.cut_prompts else 0 for prompt in prompts]
        prompts = [prompt[count:] for prompt, count in zip(prompts, lost, strict=True)]
        if self.benchmark.images is not None:
            vision, crops = model.decoder.config.vision, self.benchmark.max_crops
            assert vision is not None, "checked at the start"
            pictures = [[tokenize(one, crops, vision) for one in self.pictures(question)] for question in asked]
            prompts = [with_pictures(prompt, own) for prompt, own in zip(prompts, pictures, strict=True)]
            seen = {"images": pictures}
        done = decode.generate(
            model.decoder, model.params, prompts, **seen, max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, samples=samples,
            eos_ids=end_tokens(self.template, model.tokenizer), stop_strings=sampling.stop_strings, seed=self.seed,
            slots=sampling.slots, mesh=model.mesh if model.mesh.size > 1 else None,
            numbers=[question.number for question in asked],
            detokenize=functools.partial(model.tokenizer.decode, skip_special=True),
        )  # fmt: skip
        texts = []
        for row, length in enumerate(done.lengths):
            before = [] if self.template is not None else prompts[row // samples]
            tokens = done.tokens[row, :length].tolist()
            texts.append(response_text(model.tokenizer, before, tokens, sampling.stop_strings))
        return [
            Response(texts=tuple(texts[row * samples : (row + 1) * samples]), cut=count)
            for row, count in enumerate(lost)
        ]

    def _choose(self, asked: Sequence[Question]) -> list[Response]:
        benchmark = self.benchmark
        assert benchmark.options is not None
        options = [tuple(benchmark.options(question.document)) for question in asked]
        empty = next((q for q, own in zip(asked, options, strict=True) if not all(o.strip() for o in own)), None)
        if empty is not None:
            raise UserError(
                f"task {self.ask.benchmark}: document {empty.number} has an empty option, which has no score"
            )
        pairs = []
        for question, own in zip(asked, options, strict=True):
            contexts = [question.prompt] * len(own)
            if benchmark.contexts is not None:
                contexts = self._contexts(question)
            pairs += [
                self.encoder.pair(context, question.prefix, option)
                for context, option in zip(contexts, own, strict=True)
            ]
        lengths = [len(continuation) for _, continuation in pairs]
        if benchmark.unconditional is not None:
            pairs += [self.encoder.pair(benchmark.unconditional, "", option) for own in options for option in own]
        scores = self._scores(pairs)
        room = self.model.decoder.config.context + 1
        lost = [max(0, len(context) + len(text) - room) for context, text in pairs]
        responses, at, alone = [], 0, len(lengths)
        for own in options:
            end, further = at + len(own), alone + len(own)
            responses.append(Response(
                options=own, logprobs=tuple(value for value, _ in scores[at:end]),
                greedy=tuple(greedy for _, greedy in scores[at:end]), tokens=tuple(lengths[at:end]),
                unconditional=tuple(value for value, _ in scores[alone:further]), cut=max(lost[at:end]),
            ))  # fmt: skip
            at, alone = end, further if benchmark.unconditional is not None else alone
        return responses

    def _contexts(self, question: Question) -> list[Any]:
        """The prompt of each option: the prompt with the question replaced by the option's own."""
        assert self.benchmark.contexts is not None
        own, found = self.benchmark.prompt(question.document), self.benchmark.contexts(question.document)
        if isinstance(question.prompt, str):
            before = question.prompt[: len(question.prompt) - len(own)]
            return [before + context for context in found]
        *turns, last = question.prompt
        before = last["content"][: len(last["content"]) - len(own)]
        return [[*turns, {**last, "content": before + context}] for context in found]

    def _scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Scores of (context, continuation); a context is cut from its start where the model's own is too short."""
        room = self.model.decoder.config.context + 1
        cut = [(context[max(0, len(context) + len(text) - room) :], text) for context, text in pairs]
        longest = max((len(text) for _, text in cut), default=0)
        if longest >= room:
            raise UserError(
                f"task {self.ask.benchmark}: a continuation of {longest} tokens exceeds the model's context of "
                f"{room - 1}; use a model with a longer context"
            )
        mesh = self.model.mesh
        return loglikelihood(self.model.decoder, self.model.params, cut, mesh=mesh if mesh.size > 1 else None)

    def _rolling(self, asked: Sequence[Question]) -> list[Response]:
        """Σ log P of whole texts."""
        texts = [str(question.prompt) for question in asked]
        ids = [self.model.tokenizer.encode(text) for text in texts]
        found = rolling_logprobs(self.model, ids)
        return [
            Response(logprobs=(total,), greedy=(greedy,), tokens=(len(own),), bytes=(len(text.encode()),))
            for (total, greedy), own, text in zip(found, ids, texts, strict=True)
        ]


def rolling_logprobs(model: LoadedModel, texts: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
    """Σ log P of each text after the token that begins one, every token once, and whether all are the most likely ones.

    A text that exceeds the context is read in windows of it: each begins with the last token of the one before, and the
    last window is as long as the others, with more context for its tokens (as lm-evaluation-harness has it).
    """
    start = [start_token(model)]
    windows = [
        [(context or start, text) for context, text in rolling_windows(ids, model.decoder.config.context)]
        for ids in texts
    ]  # fmt: skip
    mesh = model.mesh if model.mesh.size > 1 else None
    found = token_logprobs(model.decoder, model.params, [pair for own in windows for pair in own], mesh=mesh)
    results, at = [], 0
    for own in windows:
        parts, at = found[at : at + len(own)], at + len(own)
        total = math.fsum(float(value) for values, _ in parts for value in values)
        results.append((total, all(bool(flags.all()) for _, flags in parts)))
    return results


def start_token(model: LoadedModel) -> int:
    """The token that begins a text: BOS, or EOS where the tokenizer has none."""
    tokenizer = model.tokenizer
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


def rolling_windows(ids: Sequence[int], context: int) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) of the windows of `context` tokens in which a text is read."""
    pairs = []
    for start in range(0, len(ids), context):
        end = min(start + context, len(ids))
        pairs.append((list(ids[max(0, end - context - 1) if start else 0 : start]), list(ids[start:end])))
    return pairs


def response_text(tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int], stops: Sequence[str]) -> str:
    """The text of a response up to the first of the stop strings.

    It is decoded with the tokens before it, since many tokenizers drop a space at the start of a text.
    """
    start, whole = (tokenizer.decode(ids, skip_special=True) for ids in (before, [*before, *tokens]))
    text = whole[len(start) :] if whole.startswith(start) else tokenizer.decode(tokens, skip_special=True)
    return text[: min([at for stop in stops if (at := text.find(stop)) >= 0], default=None)]
