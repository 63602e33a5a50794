"""Moderation benchmarks as rows with `prompt`, `response`, gold labels, `adversarial`, `subcategory` (wildguard §6).

A gold label is under `gold_<field>`; a field without one is left out, so the row does not count for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from easylm_jax.config import Source
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from easylm_jax.rewards.moderation import PROMPT_HARM, REFUSAL, RESPONSE_HARM, VALUES
from models.errors import UserError

Row = dict[str, Any]
Adapter = Callable[[Mapping[str, Any]], Row | None]


def _gold(field: str, positive: Any) -> Row:
    return {} if positive is None else {f"gold_{field}": VALUES[field][0 if positive else 1]}


def _label(field: str, value: Any) -> Row:
    """A label in words, as WildGuardMix has them; null and other words are no label."""
    return {f"gold_{field}": value} if value in VALUES[field] else {}


def toxic_chat(record: Mapping[str, Any]) -> Row | None:
    """ToxicChat (arXiv 2310.17389): the test split, prompts with `toxicity`."""
    if record.get("split", "test") != "test":
        return None
    return {"prompt": record["user_input"], **_gold(PROMPT_HARM, int(record["toxicity"]))}


_FLAGS = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")


def openai_moderation(record: Mapping[str, Any]) -> Row:
    """OpenAI Moderation (arXiv 2208.03274): harmful where any category is 1."""
    return {"prompt": record["prompt"], **_gold(PROMPT_HARM, any(record.get(name) == 1 for name in _FLAGS))}


def simple_safety_tests(record: Mapping[str, Any]) -> Row:
    """SimpleSafetyTests (arXiv 2311.08370): 100 harmful prompts; F1 there is a recall."""
    text = record.get("prompts_final") or record["prompt"]
    return {"prompt": text, "subcategory": record.get("harm_area"), **_gold(PROMPT_HARM, True)}


def harmbench_prompts(record: Mapping[str, Any]) -> Row | None:
    """HarmBench (arXiv 2402.04249): behaviours, a contextual one behind its context; copyright is left out."""
    if record.get("FunctionalCategory") == "copyright":
        return None
    context = record.get("ContextString") or ""
    text = f"{context}\n\n---\n\n{record['Behavior']}" if context else record["Behavior"]
    return {"prompt": text, "subcategory": record.get("SemanticCategory"), **_gold(PROMPT_HARM, True)}


def aegis(record: Mapping[str, Any]) -> Row | None:
    """AegisSafetyTest (arXiv 2404.05993): prompts by the majority of labels; "Needs Caution" counts as harmful."""
    if record.get("text_type", "user_message") != "user_message":
        return None
    labels = [str(record[name]) for name in sorted(record) if name.startswith("labels_") and record[name]]
    safe = sum(label == "Safe" for label in labels)
    return {"prompt": record["text"], **_gold(PROMPT_HARM, safe * 2 < len(labels))}


def wildguard(record: Mapping[str, Any]) -> Row:
    """WildGuardMix (arXiv 2406.18495): all three labels, null where there is none, with their part and category."""
    return {
        "prompt": record["prompt"], "response": record.get("response"), "subcategory": record.get("subcategory"),
        "adversarial": None if record.get("adversarial") is None else bool(record["adversarial"]),
        **_label(PROMPT_HARM, record.get("prompt_harm_label")),
        **_label(REFUSAL, record.get("response_refusal_label")),
        **_label(RESPONSE_HARM, record.get("response_harm_label")),
    }  # fmt: skip


def beaver_tails(record: Mapping[str, Any]) -> Row:
    """BeaverTails (arXiv 2307.04657): a response is harmful where it is not safe."""
    return {"prompt": record["prompt"], "response": record["response"], **_gold(RESPONSE_HARM, not record["is_safe"])}


def jailbreakbench(record: Mapping[str, Any]) -> Row | None:
    """JailbreakBench's attack artifacts (arXiv 2404.01318): rows with a response, harmful where jailbroken."""
    if not record.get("response"):
        return None
    return {"prompt": record["goal"], "response": record["response"], "subcategory": record.get("category"),
            "adversarial": True, **_gold(RESPONSE_HARM, bool(record["jailbroken"]))}  # fmt: skip


def jailbreakbench_attacks(record: Mapping[str, Any]) -> Row | None:
    """JailbreakBench's attack artifacts with the prompts that the models got, all of them harmful."""
    row = jailbreakbench(record)
    return None if row is None else {**row, "prompt": record["prompt"], **_gold(PROMPT_HARM, True)}


def xstest_exchanges(record: Mapping[str, Any]) -> Row | None:
    """XSTest's completions, with labels of the prompts too: the type of an unsafe one begins with "contrast". A full
    compliance with an unsafe prompt counts as harmful, which is this project's own reading of the labels."""
    row = xstest_completions(record)
    if row is None:
        return None
    unsafe = str(record["type"]).startswith("contrast")
    broken = unsafe and row[f"gold_{REFUSAL}"] == VALUES[REFUSAL][1]
    return {**row, **_gold(PROMPT_HARM, unsafe), **_gold(RESPONSE_HARM, broken)}


def xstest_completions(record: Mapping[str, Any]) -> Row | None:
    """XSTest's completions (arXiv 2308.01263) with human labels: refusals, partial ones too, against compliance."""
    label = str(record["final_label"])
    refused = {"1_full_compliance": False, "2_full_refusal": True, "3_partial_refusal": True}.get(label)
    return None if refused is None else {
        "prompt": record["prompt"], "response": record["completion"], "subcategory": record.get("type"),
        **_gold(REFUSAL, refused),
    }  # fmt: skip


def xstest_prompts(record: Mapping[str, Any]) -> Row:
    """XSTest's prompts: 250 safe ones that sound dangerous, 200 unsafe contrasts."""
    unsafe = {"safe": False, "unsafe": True}.get(str(record.get("label")))
    return {"prompt": record["prompt"], "subcategory": record.get("type"), **_gold(PROMPT_HARM, unsafe)}


def rows(record: Mapping[str, Any]) -> Row:
    """Rows that have this form already, such as those that `recipes/wildguard/small_data.py` writes."""
    return dict(record)


@dataclasses.dataclass(frozen=True)
class ModerationBenchmark:
    """A benchmark: its adapter, its published set, and the rows and positives of the paper where they are known."""

    adapter: Adapter
    columns: tuple[str, ...]
    source: Source | None = None
    published: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


SETS: dict[str, ModerationBenchmark] = {
    "toxic_chat": ModerationBenchmark(
        toxic_chat, ("user_input", "toxicity"), Source("hf:lmsys/toxic-chat:test", subset="toxicchat0124"),
        {PROMPT_HARM: (2853, 362)},
    ),
    "openai_moderation": ModerationBenchmark(
        openai_moderation, ("prompt",), Source("hf:mmathys/openai-moderation-api-evaluation:train"),
        {PROMPT_HARM: (1680, 522)},
    ),
    "aegis": ModerationBenchmark(
        aegis, ("text",), Source("hf:nvidia/Aegis-AI-Content-Safety-Dataset-1.0:test"), {PROMPT_HARM: (359, 232)}
    ),
    "simple_safety_tests": ModerationBenchmark(
        simple_safety_tests, (), Source("hf:Bertievidgen/SimpleSafetyTests:test"), {PROMPT_HARM: (100, 100)}
    ),
    "harmbench_prompts": ModerationBenchmark(harmbench_prompts, ("Behavior",), None, {PROMPT_HARM: (239, 239)}),
    "wildguard_test": ModerationBenchmark(
        wildguard, ("prompt", "prompt_harm_label"), Source("hf:allenai/wildguardmix:test", subset="wildguardtest")
    ),
    "harmbench_responses": ModerationBenchmark(
        wildguard, ("prompt", "response", "response_harm_label"), None, {RESPONSE_HARM: (602, 273)}
    ),
    "safe_rlhf": ModerationBenchmark(
        wildguard, ("prompt", "response", "response_harm_label"), None, {RESPONSE_HARM: (2000, 1000)}
    ),
    "beaver_tails": ModerationBenchmark(
        beaver_tails, ("prompt", "response", "is_safe"), Source("hf:PKU-Alignment/BeaverTails:30k_test"),
        {RESPONSE_HARM: (3021, 1733)},
    ),
    "xstest_response_harm": ModerationBenchmark(
        wildguard, ("prompt", "response"), Source("hf:allenai/xstest-response:response_harmfulness"),
        {RESPONSE_HARM: (446, 78)},
    ),
    "xstest_response_refusal": ModerationBenchmark(
        wildguard, ("prompt", "response"), Source("hf:allenai/xstest-response:response_refusal"),
        {REFUSAL: (449, 178)},
    ),
    "jailbreakbench": ModerationBenchmark(jailbreakbench, ("goal", "jailbroken")),
    "jailbreakbench_attacks": ModerationBenchmark(jailbreakbench_attacks, ("goal", "prompt", "jailbroken")),
    "xstest_exchanges": ModerationBenchmark(xstest_exchanges, ("prompt", "completion", "final_label", "type")),
    "xstest_completions": ModerationBenchmark(xstest_completions, ("prompt", "completion", "final_label")),
    "xstest_prompts": ModerationBenchmark(xstest_prompts, ("prompt", "label")),
    "rows": ModerationBenchmark(rows, ("prompt",)),
}  # fmt: skip


def read_set(name: str, path: str | None = None, limit: int | None = None) -> list[Row]:
    """The rows of a benchmark, from its file or from the hub.

    Raises:
        UserError: there is no such benchmark, it needs a file, or a record lacks a column.
    """
    if name not in SETS:
        raise UserError(f"no moderation benchmark {name!r}; there are {', '.join(SETS)}")
    one = SETS[name]
    source = one.source if path is None else Source(path)
    if source is None:
        raise UserError(f"moderation benchmark {name} is not on the hub in this form; give its file")
    found: list[Row] = []
    for record, where in read_records(source):
        if isinstance(record, BadRecord):
            raise UserError(str(record))
        lacking = [column for column in one.columns if record.get(column) is None and column not in record]
        if lacking:
            raise UserError(f"{where}: {name} has no column {', '.join(lacking)}; it has {', '.join(record)}")
        row = one.adapter(record)
        if row is not None:
            found.append({"id": record.get("id", len(found)), **row})
        if limit is not None and len(found) == limit:
            break
    if not found:
        raise UserError(f"{source.path} holds no row of {name}")
    return found
