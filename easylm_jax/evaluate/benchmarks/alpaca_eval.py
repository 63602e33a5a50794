"""AlpacaEval (arXiv 2404.04475): 805 instructions, each response compared with a baseline's by a judge (`--judge`).

`1` compares with text-davinci-003: the win rate (spec tulu25 §10). `2` compares with GPT-4 Turbo: the length-controlled
win rate. The authors' judge is GPT-4 with their prompt; this judge is whatever `--judge` names, with a prompt in this
project's words and an order that depends on the instruction. A reply that cannot be read is a loss and is counted under
"unread".

The length-controlled rate needs the difficulty of each instruction, which `df_gamed.csv` of tatsu-lab/alpaca_eval on
the hub holds, or the column `instruction_difficulty` of one's own file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric, Reported, Response, Scored
from easylm_jax.evaluate.metrics import win_rate
from easylm_jax.evaluate.verdicts import comparison, preference, share_of
from models.errors import UserError

HUB = "tatsu-lab/alpaca_eval"


@functools.cache
def _gamed() -> win_rate.Gamed | None:
    """The published difficulties and rows; None where the hub cannot be reached."""
    from huggingface_hub import hf_hub_download

    try:
        return win_rate.read_gamed(hf_hub_download(HUB, "df_gamed.csv", repo_type="dataset"))
    except (OSError, ValueError):
        return None


def _difficulty(document: Document) -> float:
    """γ of the document's instruction.

    Raises:
        UserError: neither the document nor the hub has it.
    """
    if document.get("instruction_difficulty") is not None:
        return float(document["instruction_difficulty"])
    gamed, number = _gamed(), document.get("index")
    if gamed is None or number is None or not 0 <= int(number) < len(gamed.difficulty):
        raise UserError(
            "alpaca_eval:2 needs the difficulty of each instruction for its length-controlled win rate: give a file "
            "with the columns index, or instruction_difficulty, and a connection to the hub for the first"
        )
    return float(gamed.difficulty[int(number)])


def _wins(document: Document, response: Response) -> float:
    return share_of(response, lambda reply: (preference(reply, document["instruction"]) or 0.0) > 0.5) + 0.5 * share_of(
        response, lambda reply: preference(reply, document["instruction"]) == 0.5
    )


def _unread(document: Document, response: Response) -> float:
    return share_of(response, lambda reply: preference(reply, document["instruction"]) is None)


def _facts(document: Document, response: Response) -> tuple[float, int, int, float]:
    """(preference, characters of the response, of the baseline's, difficulty)."""
    return _wins(document, response), len(response.texts[0]), len(document["output"]), _difficulty(document)


def _controlled(scored: Sequence[Scored]) -> tuple[float, float]:
    wins, lengths, theirs, difficulty = zip(*(one.value for one in scored), strict=True)
    if len(wins) < win_rate.FOLDS:
        return tuple(win_rate.plain_win_rate(wins))  # type: ignore[return-value]
    gamed = _gamed()
    fit = win_rate.length_controlled(wins, lengths, theirs, difficulty, None if gamed is None else gamed.rows)
    return fit.rate.value, fit.rate.stderr


PLAIN = Metric("win_rate", _wins, of_document=True)
UNREAD = Metric("unread", _unread, of_document=True, lower=True)
LENGTH = Metric(
    "characters", lambda document, response: float(len(response.texts[0])), of_document=True, unit="characters"
)  # fmt: skip


def _label(document: Document) -> Any:
    return document["output"]


BENCHMARK = Benchmark(
    title="AlpacaEval 1",
    documents=(Source(f"hf:{HUB}:eval", data_files="alpaca_eval.json"),),
    size=805,
    columns=("instruction", "output"),
    request="judge",
    prompt=lambda document: document["instruction"],
    label=_label,
    chat=True,
    sampling=Sampling(8192, temperature=0.0),
    judge=comparison(lambda document: document["instruction"], lambda document: document["output"]),
    metrics=(PLAIN, UNREAD, LENGTH),
)


def _label_with_difficulty(document: Document) -> Any:
    _difficulty(document)  # an error before anything is asked
    return document["output"]


SETTINGS = {
    "1": dataclasses.replace(
        BENCHMARK, published=(Reported("OLMoE-1B-7B SFT", 0.692, "arXiv 2409.02060, Table 5"),)
    ),
    "2": dataclasses.replace(
        BENCHMARK, title="AlpacaEval 2", label=_label_with_difficulty,
        documents=(Source(f"hf:{HUB}:eval", data_files="alpaca_eval_gpt4_baseline.json"),),
        metrics=(
            Metric("length_controlled_win_rate", _facts, _controlled, of_document=True), PLAIN, UNREAD, LENGTH,
        ),
        published=(
            Reported("Tülu 3 8B SFT", 0.124, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 8B DPO", 0.335, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 8B", 0.345, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 70B", 0.498, "arXiv 2411.15124, Table 5"),
            Reported("OLMo 2 7B Instruct", 0.291, "arXiv 2501.00656, Table 16"),
            Reported("OLMo 2 13B Instruct", 0.395, "arXiv 2501.00656, Table 16"),
        ),
    ),
}  # fmt: skip
