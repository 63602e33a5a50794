"""HREF (arXiv 2412.15524): instructions of eleven kinds; the win rate against Llama 3.1 405B Instruct by a judge.

The documents hold the baseline's response as `baseline`; the paper's judge is Llama 3.1 70B Instruct, this one is
whatever `--judge` names, with a prompt in this project's words. The mean of the kinds.
"""

from __future__ import annotations

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric, Reported, Response
from easylm_jax.evaluate.verdicts import comparison, preference, share_of


def _wins(document: Document, response: Response) -> float:
    values = [preference(reply, document["instruction"]) or 0.0 for reply in response.replies]
    return sum(values) / max(1, len(values))


def _unread(document: Document, response: Response) -> float:
    return share_of(response, lambda reply: preference(reply, document["instruction"]) is None)


BENCHMARK = Benchmark(
    title="HREF",
    documents=(Source("href_llama_3_1_405b.jsonl"),),
    columns=("instruction", "baseline", "category"),
    request="judge",
    prompt=lambda document: document["instruction"],
    label=lambda document: document["baseline"],
    group=lambda document: document["category"],
    chat=True,
    sampling=Sampling(1024, temperature=0.0),
    judge=comparison(lambda document: document["instruction"], lambda document: document["baseline"]),
    metrics=(
        Metric("win_rate", _wins, "macro", of_document=True),
        Metric("unread", _unread, of_document=True, lower=True),
    ),
    published=(
        Reported("Tülu 3 8B", 0.327, "arXiv 2411.15124, Table 33"),
        Reported("Tülu 3 70B", 0.423, "arXiv 2411.15124, Table 33"),
    ),
)
