"""Three kinds of judges of preference items: reward models, DPO's implicit reward, language models (spec §3).

A judge is called with items and returns an `Outcome` for each. Reward models and log-probabilities are computed by
`decode/likelihood.py`: the prompt's computation is shared by its answers, and a score has the same bits whatever else
is asked. `compat="mrb"` imitates the published runners where the text says so; everything else is the default.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from easylm_jax.data import templates
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.data.tokenizer_template import resolve
from easylm_jax.decode.likelihood import reward_scores, token_logprobs
from easylm_jax.evaluate.preferences.items import Item
from easylm_jax.evaluate.preferences.languages import ENGLISH, LANGUAGES
from easylm_jax.evaluate.preferences.sections import CODE, best_of
from easylm_jax.rewards.judge_pairs import (
    LETTERS,
    pair_question,
    parse_rating,
    parse_verdict,
    rating_question,
    without_system,
)
from models.errors import UserError
from models.model import Model

PyTree = Any
Ask = Callable[[Sequence[list[dict[str, str]]]], Sequence[str]]  # conversations → replies
LONGEST = 4096  # tokens of prompt and answer of a reward model, where its context allows them
NORMS = ("sum", "avg", "norm")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a judge says of an item.

    Attributes:
        result: 1 right, ½ undecided, 0 wrong; of best-of-n the share of a tie.
        scores: one for each answer, where the judge gives scores.
        verdicts: parsed verdicts in the order of the questions; None where a reply could not be parsed.
        errors: replies that could not be parsed.
        flipped: whether both orders were parsed and prefer different answers; None without two orders.
        truncated: whether something was cut.
        tokens: real tokens read.
    """

    result: float
    scores: tuple[float, ...] = ()
    verdicts: tuple[str | None, ...] = ()
    errors: int = 0
    flipped: bool | None = None
    truncated: bool = False
    tokens: int = 0


class Judge(Protocol):
    """`kind` labels tables: "classifier", "implicit", "implicit (ref-free)", "judge", "ratings", "logit-judge"."""

    @property
    def kind(self) -> str: ...

    def __call__(self, items: Sequence[Item]) -> list[Outcome]: ...


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and of an answer after it; `truncated` where a limit cut either."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    truncated: bool


def encode(
    items: Sequence[Item], tokenizer: Tokenizer, template: str, limit: int, *, keep_tail: bool = True,
    compat: str | None = None,
) -> list[list[Encoded]]:  # fmt: skip
    """Every answer of every item, rendered by the chat template after its prompt; the answer ends with its end token.

    Where prompt and answer exceed `limit`, the prompt loses tokens on its left, then the answer on its right.

    Args:
        items: the items.
        tokenizer: of the model.
        template: a chat template's name.
        limit: most tokens of prompt and answer.
        keep_tail: whether what a template puts behind the end token belongs to the answer (reward models read it).
        compat: "mrb" cuts both on the left, as the published runner does.
    """
    chat = resolve(template, tokenizer)
    known = set(chat.turns)
    for item in items:
        strange = next((turn["role"] for turn in item.prompt if turn["role"] not in known), None)
        if strange is not None:
            raise UserError(f"item {item.id}: the role {strange!r} is not in template {template}")
    rendered = [
        templates.render(chat, [*item.prompt, {"role": "assistant", "content": text}], train_on="last_assistant")
        for item in items
        for text in item.completions
    ]
    found = []
    for ids, mask in templates.tokenize(rendered, tokenizer):
        marked = np.flatnonzero(mask)
        first = int(marked[0]) if len(marked) else len(ids) - 1
        end = len(ids) if keep_tail or not len(marked) else int(marked[-1]) + 1
        found.append(_cut(ids[:end].tolist(), max(first, 1), limit, compat))
    sizes = np.cumsum([0, *(len(item.completions) for item in items)])
    return [found[start:stop] for start, stop in zip(sizes, sizes[1:], strict=False)]


def _cut(ids: list[int], first: int, limit: int, compat: str | None) -> Encoded:
    over = len(ids) - limit
    if over <= 0:
        return Encoded(tuple(ids[:first]), tuple(ids[first:]), False)
    if compat == "mrb":
        ids, first = ids[over:], max(first - over, 1)
        return Encoded(tuple(ids[:first]), tuple(ids[first:]), True)
    answer = ids[first:][: limit - 1]
    return Encoded(tuple(ids[:first][-(limit - len(answer)) :]), tuple(answer), True)


def _outcome(item: Item, scores: Sequence[float], encoded: Sequence[Encoded]) -> Outcome:
    """The outcome of scores; of a pair, an equal score counts as wrong (spec §3.1)."""
    result = float(scores[0] > scores[1]) if item.kind == "pair" else best_of(scores, item.correct)
    if item.kind == "ties":
        result = float(min(scores[: item.correct]) > max(scores[item.correct :]))
    # The prompt is read once for all answers.
    read = len({each.prompt for each in encoded}) and sum(map(len, {each.prompt for each in encoded}))
    return Outcome(
        result, tuple(map(float, scores)), truncated=any(each.truncated for each in encoded),
        tokens=read + sum(len(each.answer) for each in encoded),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A reward model with a scalar head; its score at the last token, in float32. `compat="mrb"`: 512 tokens."""

    model: Model
    params: PyTree
    tokenizer: Tokenizer
    template: str
    mesh: jax.sharding.Mesh | None = None
    longest: int = LONGEST
    compat: str | None = None
    kind: str = "classifier"

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        limit = min(512 if self.compat == "mrb" else self.longest, self.model.config.context)
        encoded = encode(items, self.tokenizer, self.template, limit, compat=self.compat)
        requests = [(each.prompt, each.answer) for own in encoded for each in own]
        scores = iter(reward_scores(self.model, self.params, requests, mesh=self.mesh).tolist())
        return [_outcome(item, [next(scores) for _ in own], own) for item, own in zip(items, encoded, strict=True)]


@dataclasses.dataclass(frozen=True)
class LogProbs:
    """Sums, means and norms of an answer's log-probabilities, and the number of its tokens."""

    total: float
    tokens: int
    square: float


def answer_logprobs(
    model: Model, params: PyTree, encoded: Sequence[Sequence[Encoded]], mesh: jax.sharding.Mesh | None = None
) -> list[list[LogProbs]]:  # fmt: skip
    """The log-probabilities of every answer's tokens, its one end token included, headers and prompt left out."""
    requests = [(each.prompt, each.answer) for own in encoded for each in own]
    values = iter(token_logprobs(model, params, requests, mesh=mesh))
    totals = []
    for own in encoded:
        parts = [next(values)[0].astype(np.float64) for _ in own]
        totals.append([LogProbs(float(p.sum()), len(p), float((p**2).sum())) for p in parts])
    return totals


@dataclasses.dataclass(frozen=True)
class Implicit:
    """DPO's implicit reward Σ log π(y|x) − Σ log π_ref(y|x); β does not change the order (spec §3.2).

    `reference` returns the log-probabilities of the reference, so that both models need not be in memory at once; None
    is reference-free: "avg" (mean log p, the published default), "sum" or "norm" (−‖log p‖₂). `ratio="mean"` divides
    the log-ratio by the number of tokens.
    """

    policy: Callable[[Sequence[Sequence[Encoded]]], list[list[LogProbs]]]
    reference: Callable[[Sequence[Sequence[Encoded]]], list[list[LogProbs]]] | None
    tokenizer: Tokenizer
    template: str
    longest: int
    norm: str = "avg"
    ratio: str = "sum"

    @property
    def kind(self) -> str:
        return "implicit" if self.reference is not None else f"implicit (ref-free, {self.norm})"

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        encoded = encode(items, self.tokenizer, self.template, self.longest, keep_tail=False)
        own = self.policy(encoded)
        base = None if self.reference is None else self.reference(encoded)
        outcomes = []
        for number, (item, parts) in enumerate(zip(items, encoded, strict=True)):
            scores = [self._score(own[number][i], None if base is None else base[number][i]) for i in range(len(parts))]
            outcomes.append(_outcome(item, scores, parts))
        return outcomes

    def _score(self, policy: LogProbs, reference: LogProbs | None) -> float:
        if reference is not None:
            lead = policy.total - reference.total
            return lead / max(policy.tokens, 1) if self.ratio == "mean" else lead
        if self.norm == "norm":
            return -(policy.square**0.5)
        return policy.total / max(policy.tokens, 1) if self.norm == "avg" else policy.total


def language_names(item: Item, compat: str | None) -> dict[str, str | None]:
    """The names of the languages of question and answers; code is answered in English. `compat="mrb"`: answers are
    said to be in English for every language, as the published script does."""
    language = LANGUAGES.get(item.language)
    if language is None or item.language == ENGLISH:
        return {"source": None, "target": None}
    english = compat == "mrb" or item.subset in CODE
    return {"source": language.name, "target": "English" if english else language.name}


def _draw(item: Item, seed: int) -> int:
    """A number that depends on the item and the seed alone."""
    text = f"{item.id}|{item.language}|{item.subset}|{seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@dataclasses.dataclass(frozen=True)
class PairJudge:
    """A language model that sees the answers side by side.

    `order`: "both" asks in both orders, and the result is the mean of both; "random" asks once, in an order that
    depends on the item and `seed`. A reply without a verdict counts ½ (of best-of-four ¼).
    """

    ask: Ask
    order: str = "both"
    seed: int = 0
    compat: str | None = None
    kind: str = "judge"

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        orders = [self._orders(item) for item in items]
        replies = iter(self.ask([self._question(item, order) for item, own in zip(items, orders, strict=True)
                                 for order in own]))  # fmt: skip
        return [self._outcome(item, own, [next(replies) for _ in own]) for item, own in zip(items, orders, strict=True)]

    def _orders(self, item: Item) -> list[list[int]]:
        count = len(item.completions)
        if item.kind == "ties" or count > len(LETTERS):
            raise UserError(f"item {item.id}: {count} answers cannot be compared side by side; use ratings")
        if item.kind == "bon":  # the right answer at a random place
            place = _draw(item, self.seed) % count
            rest = list(range(1, count))
            return [[*rest[:place], 0, *rest[place:]]]
        both = [[0, 1], [1, 0]]
        return both if self.order == "both" else [both[_draw(item, self.seed) % 2]]

    def _question(self, item: Item, order: list[int]) -> list[dict[str, str]]:
        names = language_names(item, self.compat)
        return pair_question(item.prompt, [item.completions[i] for i in order], **names)

    def _outcome(self, item: Item, orders: list[list[int]], replies: Sequence[str]) -> Outcome:
        verdicts = tuple(parse_verdict(text, LETTERS[: len(item.completions)], self.compat) for text in replies)
        preferred = [None if v is None else order[LETTERS.index(v)] for v, order in zip(verdicts, orders, strict=True)]
        undecided = 1 / len(item.completions)
        results = [undecided if p is None else float(p < item.correct) for p in preferred]
        flipped = None if len(preferred) < 2 or None in preferred else preferred[0] != preferred[1]
        return Outcome(sum(results) / len(results), verdicts=verdicts, errors=verdicts.count(None), flipped=flipped)


@dataclasses.dataclass(frozen=True)
class RatingJudge:
    """A language model that rates each answer from 1 to 10; the best rating wins, and ties are shared (spec §3.3).

    A rating that cannot be parsed counts as none: it never wins, and where all are missing the result is 1/n.
    """

    ask: Ask
    compat: str | None = None
    kind: str = "ratings"

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        questions = [
            rating_question(item.prompt[-1]["content"], text, ties=item.kind == "ties")
            for item in items
            for text in item.completions
        ]
        replies = iter(self.ask(questions))
        outcomes = []
        for item in items:
            ratings = [parse_rating(next(replies), "rb2" if self.compat else None) for _ in item.completions]
            scores = [-1.0 if rating is None else float(rating) for rating in ratings]
            result = best_of(scores, item.correct) if max(scores) >= 0 else item.correct / len(scores)
            if item.kind == "ties":
                result = float(min(scores[: item.correct]) > max(scores[item.correct :]))
            verdicts = tuple(None if rating is None else str(rating) for rating in ratings)
            outcomes.append(Outcome(result, tuple(scores), verdicts, errors=verdicts.count(None)))
        return outcomes


@dataclasses.dataclass(frozen=True)
class LogitJudge:
    """A language model that is asked for the letter alone: log P("A") − log P("B") after a forced "[[", both orders.

    Two short passes in place of a reply of a thousand tokens. Results must not be mixed with those of `PairJudge`.
    """

    model: Model
    params: PyTree
    tokenizer: Tokenizer
    template: str
    mesh: jax.sharding.Mesh | None = None
    compat: str | None = None
    kind: str = "logit-judge"

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        chat, context = resolve(self.template, self.tokenizer), self.model.config.context
        letters = [self.tokenizer.encode(letter)[-1] for letter in "AB"]
        start = self.tokenizer.encode("[[")
        requests, too_long = [], []
        for item in items:
            if item.kind != "pair":
                raise UserError(f"item {item.id}: the logit judge compares two answers, not {len(item.completions)}")
            for order in ((0, 1), (1, 0)):
                question = pair_question(
                    item.prompt, [item.completions[i] for i in order], **language_names(item, self.compat)
                )
                if "system" not in chat.turns:
                    question = without_system(question)
                prompt = [*templates.encode_prompt(chat, question, self.tokenizer), *start]
                too_long.append(len(prompt) > context)
                requests += [(prompt[-context:], [letter]) for letter in letters]
        values = [float(tokens[0]) for tokens, _ in token_logprobs(self.model, self.params, requests, mesh=self.mesh)]
        margins = np.array(values).reshape(-1, 2, 2)  # [items, orders, letters]
        first = margins[:, :, 0] - margins[:, :, 1]  # how much the answer shown first is preferred
        lengths = [len(prompt) for prompt, _ in requests]
        outcomes = []
        for number in range(len(items)):
            leads = (first[number, 0], -first[number, 1])
            results = [0.5 if lead == 0 else float(lead > 0) for lead in leads]
            verdicts = tuple("A" if lead > 0 else "B" if lead < 0 else None for lead in first[number])
            outcomes.append(Outcome(
                sum(results) / 2, (float(np.mean(leads)), 0.0), verdicts, flipped=results[0] != results[1],
                truncated=any(too_long[2 * number : 2 * number + 2]),
                tokens=sum(lengths[4 * number : 4 * number + 4 : 2]),
            ))  # fmt: skip
        return outcomes


def panel(outcomes: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """The majority of an odd number of judges: the result that most give; without a majority ½ (spec §3.3).

    Raises:
        UserError: the number of judges is even or one.
    """
    if len(outcomes) < 3 or len(outcomes) % 2 == 0:
        raise UserError(f"a panel of {len(outcomes)} judges; it needs an odd number, at least three")
    merged = []
    for votes in zip(*outcomes, strict=True):
        right, wrong = (sum(vote.result > 0.5 for vote in votes), sum(vote.result < 0.5 for vote in votes))
        result = 1.0 if right > len(votes) / 2 else 0.0 if wrong > len(votes) / 2 else 0.5
        merged.append(Outcome(
            result, verdicts=tuple(v for vote in votes for v in vote.verdicts), errors=sum(v.errors for v in votes)
        ))  # fmt: skip
    return merged


def record_of(item: Item, outcome: Outcome) -> dict[str, Any]:
    """The line of `items.<language>.jsonl`."""
    said = {name: value for name, value in dataclasses.asdict(outcome).items() if value not in ((), None)}
    return {"id": item.id, "language": item.language, "subset": item.subset, "kind": item.kind,
            "correct": item.correct, **said}  # fmt: skip


Records = Sequence[Mapping[str, Any]]
