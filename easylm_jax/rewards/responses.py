"""The responses of an evaluation as they are kept: each with its prompt, label, verdict and reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from easylm_jax.data import Cache
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import rollout
from easylm_jax.decode.rollout import Rollout
from easylm_jax.report.read import MOST_PROMPTS
from easylm_jax.rewards.pictures import shown
from easylm_jax.rewards.verdict import label_of
from easylm_jax.rewards.verify import Scores


def scored_responses(
    sampled: Rollout, cache: Cache, tokenizer: Tokenizer, result: Scores
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A record for each response of a rollout, in its order.

    `number` counts the prompts of the rollout and `sample` the responses to one; `record` is the prompt's place in
    its source. `prompt` is the last turn of the conversation, and `messages` all turns where there are several.
    `label` is the label of the prompt's record, `score` the verdict, and `reason` why, where the verifier says so. The
    first prompts about pictures, which a report shows, have `pictures` and `points` too.
    """
    for row in range(sampled.rows):
        record = cache.record(int(sampled.prompt_index[row]))
        messages = record["_messages"]
        number, text = row // sampled.samples, rollout.text_of(sampled, row, tokenizer)
        yield {
            "number": number,
            "record": record["_record"],
            "prompt": messages[-1]["content"],
            **({"messages": messages} if len(messages) > 1 else {}),
            "label": label_of(record),
            "sample": row % sampled.samples,
            "response": text,
            "length": int(sampled.lengths[row]),
            "ended": bool(sampled.ended[row]),
            "score": float(result.scores[row]),
            **({"reason": result.reasons[row]} if row in result.reasons else {}),
            **(shown(record, text) if number < MOST_PROMPTS else {}),
        }
