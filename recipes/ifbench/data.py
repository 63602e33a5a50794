"""Prompts of IF-RLVR (arXiv 2507.02833, Section 4): a request followed by one to six verifiable instructions.

    MakeData("prompts", function="recipes.ifbench.data:write", seed=1, arguments={"count": 60_000, "most": 5})

The requests are first user turns of the Tülu 3 SFT mixture. Instructions are sampled from the 54 of IFTrain and IFEval,
so that none conflicts with another of the same prompt (`instructions.combine`). The 58 of IFBench are never used, and
requests that overlap with IFBench's prompts are left out. The rows have the format of the published set
(allenai/IF_multi_constraints_upto5).
"""

from __future__ import annotations

import hashlib
import heapq
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from easylm_jax.config import Source
from easylm_jax.data.prompts import prompt_of
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from easylm_jax.rewards.instructions import REGISTRY, find
from easylm_jax.rewards.instructions.combine import conflict
from models.errors import UserError

REQUESTS = "hf:allenai/tulu-3-sft-mixture"
IFBENCH = "hf:allenai/IFBench_test"
PUBLISHED = 95_373  # rows of the published set
GRAM = 8  # n-gram size in words; an overlap is n-gram matches over half of a prompt (Tülu 3, Section 3.2)

# Ranges (low, high) of the numbers in instructions, as in the tests (IFEval) and in IFTrain. Figure 5 compares them
# with "wider" ranges, up to twice as high, and "different" ones, above these.
RANGES: dict[str, dict[str, tuple[int, int]]] = {
    "keywords:frequency": {"frequency": (1, 3)},
    "keywords:letter_frequency": {"let_frequency": (1, 10)},
    "length_constraints:number_sentences": {"num_sentences": (1, 20)},
    "length_constraints:number_paragraphs": {"num_paragraphs": (1, 5)},
    "length_constraints:number_words": {"num_words": (100, 500)},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": (1, 5)},
    "detectable_content:number_placeholders": {"num_placeholders": (1, 4)},
    "detectable_format:number_bullet_lists": {"num_bullets": (1, 5)},
    "detectable_format:number_highlighted_sections": {"num_highlights": (1, 4)},
    "detectable_format:multiple_sections": {"num_sections": (1, 5)},
    "change_case:capital_word_frequency": {"capital_frequency": (1, 20)},
    "keywords:word_count_different_numbers": {"frequency": (1, 3)},
    "letters:letter_counting2": {"let_frequency": (1, 10)},
    "letters:letter_counting": {"N": (2, 3)},
    "copy:copying_multiple": {"N": (2, 3)},
    "copy:repeat_phrase": {"small_n": (2, 3)},
    "count:lowercase_counting": {"N": (2, 3)},
    "count:counting_composition": {"n_sent": (2, 3), "n_words": (2, 3)},
    "keywords:keyword_specific_position": {"n": (1, 20), "m": (1, 30)},
}


class Request(NamedTuple):
    """A user's request, and the response to it in the data, if any."""

    key: str
    prompt: str
    answer: str | None = None


def write(
    seed: int,
    *,
    count: int = PUBLISHED,
    least: int = 1,
    most: int = 5,
    instances: int | None = None,
    ranges: str = "same",
    leave_out: str = "",
    ifeval: int = 25,
    turns: str = "single",
    source: str = REQUESTS,
    exclude: str | None = IFBENCH,
) -> dict[str, list[dict[str, Any]]]:
    """`prompts.jsonl`: rows with messages, dataset, ground_truth.

    Args:
        seed: seed of all sampling.
        count: number of prompts; with `instances`, the most.
        least, most: instructions per prompt; fewer where no other is compatible with those sampled.
        instances: how often each instruction occurs in all; by default this is random.
        ranges: "same", "wider" or "different", compared with the numbers of the tests (`RANGES`).
        leave_out: groups of instructions to leave out, separated by spaces ("keywords length_constraints").
        ifeval: how many of IFEval's 25 instructions are used with IFTrain's 29. Smaller choices are subsets of larger.
        turns: "single"; "multi", where the instructions ask to rewrite a response of the data; or "mix" of the two.
        source: data set of requests (conversations or prompts).
        exclude: data set of prompts that requests must not overlap with.

    Raises:
        UserError: an argument has another value, or there are too few requests.
    """
    pool = instruction_ids(ifeval, leave_out)
    if ranges not in ("same", "wider", "different") or turns not in ("single", "multi", "mix"):
        raise UserError(
            f"prompts: no ranges {ranges!r} (same, wider, different) or turns {turns!r} (single, multi, mix)"
        )
    if not 1 <= least <= most or count < 1 or (instances is not None and instances < 1):
        raise UserError("prompts: least must be at least 1 and at most most; count and instances at least 1")
    overlaps = Overlap(_prompts(exclude)) if exclude else None
    requests = sampled(
        _requests(source, answered=turns != "single"), count, seed, keep=lambda text: not (overlaps and overlaps(text))
    )
    rows = list(with_instructions(requests, random.Random(seed), pool, least, most, instances, ranges, turns))
    if instances is None and len(rows) < count:
        raise UserError(f"prompts: {source} has {len(rows)} usable requests, not {count}; lower count")
    return {"prompts.jsonl": rows}


def instruction_ids(ifeval: int = 25, leave_out: str = "") -> list[str]:
    """Ids of IFTrain's instructions and of `ifeval` of IFEval's, in a fixed order, without groups in `leave_out`."""
    theirs = sorted(name for name, one in REGISTRY.items() if one.suite == "ifeval")
    random.Random(0).shuffle(theirs)
    if not 0 <= ifeval <= len(theirs):
        raise UserError(f"prompts: ifeval {ifeval} must lie between 0 and {len(theirs)}")
    ids = sorted(name for name, one in REGISTRY.items() if one.suite == "iftrain") + theirs[:ifeval]
    groups = {name.partition(":")[0] for name in REGISTRY}
    left = leave_out.split()
    if unknown := [group for group in left if group not in groups]:
        raise UserError(f"prompts: no group {unknown[0]!r} to leave out; there are {', '.join(sorted(groups))}")
    return [name for name in ids if name.partition(":")[0] not in left]


def with_instructions(
    requests: Iterable[Request],
    rng: random.Random,
    pool: list[str],
    least: int = 1,
    most: int = 5,
    instances: int | None = None,
    ranges: str = "same",
    turns: str = "single",
) -> Iterator[dict[str, Any]]:
    """Yields a row for each request; with `instances`, until every instruction has occurred so many times.

    Raises:
        UserError: there are too few requests for `instances`.
    """
    left = Counter(dict.fromkeys(pool, instances)) if instances else None
    for number, request in enumerate(requests):
        multi = turns == "multi" or (turns == "mix" and number % 2 == 1)
        open_ids = [name for name in pool if not (left is not None and left[name] == 0)]
        if left is not None and not open_ids:
            return
        if multi:  # the task is to rewrite a response, so instructions to repeat the prompt do not apply
            open_ids = [name for name in open_ids if not _repeats(name)]
        ids = drawn(rng, open_ids, rng.randint(least, most))
        if not ids:
            continue
        if left is not None:
            left.subtract(ids)
        yield row(request, ids, [arguments(rng, name, request.prompt, ranges) for name in ids], multi)
    if left is not None and any(left.values()):
        raise UserError(f"prompts: too few requests to ask for every instruction {instances} times; raise count")


def arguments(rng: random.Random, name: str, prompt: str, ranges: str = "same") -> dict[str, Any]:
    """Sampled arguments of an instruction, with numbers from the "same", "wider" or "different" `RANGES`."""
    given = find(name).sample_arguments(rng, prompt)
    for argument, (low, high) in RANGES.get(name, {}).items():
        span = {"same": (low, high), "wider": (low, 2 * high), "different": (high + 1, 2 * high)}[ranges]
        given[argument] = rng.randint(*span)
    if "nth_paragraph" in given:
        given["nth_paragraph"] = rng.randint(1, given["num_paragraphs"])
    return given


def drawn(rng: random.Random, pool: list[str], count: int) -> list[str]:
    """`count` compatible instructions sampled from the pool; fewer where no other is compatible."""
    ids: list[str] = []
    while pool and len(ids) < count:
        ids.append(rng.choice(pool))
        pool = [name for name in pool if not conflict(name, ids[-1])]
    return ids


def _repeats(name: str) -> bool:
    """Whether an instruction asks to repeat the prompt."""
    return any(argument.name == "prompt_to_repeat" for argument in find(name).arguments)


def row(request: Request, ids: list[str], given: list[Mapping[str, Any]], multi: bool = False) -> dict[str, Any]:
    """The request followed by its instructions; with `multi`, its response and then the instructions to rewrite it."""
    texts = [find(name).describe(**own) for name, own in zip(ids, given, strict=True)]
    if multi:
        messages = [("user", request.prompt), ("assistant", str(request.answer))]
        messages.append(("user", " ".join(["Write that answer again, in another form.", *texts])))
    else:
        messages = [("user", " ".join([request.prompt, *texts]))]
    truth = [{"instruction_id": ids, "kwargs": [dict(own) or None for own in given]}]
    return {
        "key": request.key,
        "messages": [{"role": role, "content": content} for role, content in messages],
        "dataset": "ifeval",
        "ground_truth": json.dumps(truth, ensure_ascii=False),
        "constraint": "\t".join(texts),
        "constraint_type": "multi" if len(ids) > 1 else "single",
    }


def sampled(requests: Iterable[Request], count: int, seed: int, keep: Any = None) -> list[Request]:
    """`count` distinct requests in a random order; the source is read once and not held in memory."""
    seen: set[int] = set()

    def ranked() -> Iterator[tuple[int, int, Request]]:
        for number, request in enumerate(requests):
            same = hash_of(request.prompt)
            if same not in seen and (keep is None or keep(request.prompt)):
                seen.add(same)
                yield hash_of(f"{seed} {number} {same}"), number, request

    return [request for _, _, request in heapq.nsmallest(count, ranked())]


def hash_of(text: str) -> int:
    """A 64-bit hash of a text that is the same on all machines."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _records(path: str) -> Iterator[tuple[dict[str, Any], str]]:
    for record, where in read_records(Source(path)):
        if not isinstance(record, BadRecord):
            yield record, where


def _requests(path: str, answered: bool) -> Iterator[Request]:
    """First user turns with the responses to them; with `answered`, records without a response are skipped."""
    for number, (record, where) in enumerate(_records(path)):
        try:
            messages = record["messages"] if "messages" in record else prompt_of(record, Source(path), where)
        except BadRecord:
            continue
        turns = [turn for turn in messages if turn.get("role") != "system"]
        if not turns or turns[0].get("role") != "user" or not isinstance(turns[0]["content"], str):
            continue
        answer = turns[1]["content"] if len(turns) > 1 else None
        if turns[0]["content"].strip() and (answer or not answered):
            yield Request(f"{path} {number}", turns[0]["content"], answer)


def _prompts(path: str) -> Iterator[str]:
    return (str(record["prompt"]) for record, _ in _records(path))


class Overlap:
    """Whether a text equals one of some prompts, or shares 8-grams of words that cover half of either text."""

    def __init__(self, prompts: Iterable[str]):
        self.lengths: list[int] = []
        self.whole: set[tuple[str, ...]] = set()
        self.grams: dict[tuple[str, ...], set[int]] = {}
        for number, prompt in enumerate(prompts):
            words = _words(prompt)
            self.lengths.append(len(words))
            self.whole.add(words)
            for at in range(len(words) - GRAM + 1):
                self.grams.setdefault(words[at : at + GRAM], set()).add(number)

    def __call__(self, text: str) -> bool:
        words = _words(text)
        covered: dict[int, set[int]] = {}
        for at in range(len(words) - GRAM + 1):
            for number in self.grams.get(words[at : at + GRAM], ()):
                covered.setdefault(number, set()).update(range(at, at + GRAM))
        much = any(len(places) > min(len(words), self.lengths[number]) / 2 for number, places in covered.items())
        return much or words in self.whole


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w']+", text.lower()))
