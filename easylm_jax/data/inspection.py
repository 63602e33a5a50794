"""Shows a cache as text: a summary of its manifest, and its rows."""

from __future__ import annotations

from typing import Any

import numpy as np


def summary(cache: Any) -> str:
    """A summary of a cache in several lines."""
    facts = cache.manifest
    lines = [
        f"cache       {cache.folder}",
        f"rows        {cache.rows:,} of {facts['sequence_length']:,} tokens, {facts['fill_rate']:.1%} filled",
        *_contents(facts),
        f"tokenizer   {facts['tokenizer']['spec']} ({facts['tokenizer']['vocab_size']:,} tokens)",
    ]
    if facts["blanked_windows"]:
        lines.append(f"blanked     {facts['blanked_windows']:,} windows without loss (repetition)")
    parts = facts["parts"] if len(facts["parts"]) > 1 else [None] * len(facts["sources"])  # None for each source
    for source, part in zip(facts["sources"], parts, strict=True):
        records = source["records"]
        notes = [f"{records['kept']:,} of {records['read']:,} records, {source['tokens']:,} tokens"]
        if part is not None:
            notes.append(f"{part['rows']:,} rows at rate {part['rate']:.4g}")
        for name in (
            "truncated",
            "bad",
            "empty",
            "overlong_dropped",
            "untrained_dropped",
            "repetitive_dropped",
            "identical_dropped",
        ):
            if records.get(name):  # caches of earlier versions lack some counts
                notes.append(f"{name.replace('_', ' ')} {records[name]:,}")
        lines.append(f"source      {source['path']}: {', '.join(notes)}")
    return "\n".join(lines)


def _contents(facts: dict[str, Any]) -> list[str]:
    if facts["layout"] == "prompts":
        return [f"prompts     {facts['prompts']:,}, {facts['tokens'] / facts['rows']:.1f} tokens on average"]
    lines = [
        f"tokens      {facts['tokens']:,}, of which trained {facts['trained_tokens']:,}",
        f"entropy     {facts['unigram_entropy_nats']:.3f} nats (unigram, trained tokens)",
    ]
    if "pairs" in facts:
        lines.insert(0, f"pairs       {facts['pairs']:,}, at most {facts['pairs_per_row']} in a row")
    return lines


def describe_row(cache: Any, row: int, tokenizer: Any) -> dict[str, Any]:
    """One row as plain values: its documents, each as pieces of text with and without loss.

    Documents of a pair also have the index of the pair, the side and the margin; prompts their index and the kept
    columns.
    """
    batch = {name: array[0] for name, array in cache.read(np.array([row])).items()}
    # The loss weight of predicting a token is at the position before it.
    weights = batch.get("loss_weights", np.zeros(len(batch["tokens"]) - 1))
    trained = np.concatenate([[False], weights > 0])
    documents = []
    for number, segment in enumerate(cache.documents(row)):
        ids = batch["tokens"][segment.start : segment.start + segment.length]
        if not len(ids):  # the last token of a window, which is only a target
            continue
        marks = trained[segment.start : segment.start + len(ids)]
        edges = [0, *(np.flatnonzero(np.diff(marks.astype(np.int8))) + 1).tolist(), len(ids)]
        pieces = [
            {"text": tokenizer.decode(ids[a:b]), "trained": bool(marks[a])}
            for a, b in zip(edges, edges[1:], strict=False)
        ]
        source = cache.manifest["sources"][segment.source]["path"]
        facts = {"source": source, "record": segment.document, "tokens": len(ids), **_place(cache, batch, number)}
        documents.append({**facts, "pieces": pieces, "ids": ids.tolist()})
    return {"row": row, "documents": documents}


def _place(cache: Any, batch: dict[str, np.ndarray], number: int) -> dict[str, Any]:
    """Entries for document `number` of a row that depend on the kind of data."""
    if "pair_index" in batch:
        pair, side = divmod(number, 2)
        facts = {"pair": int(batch["pair_index"][pair]), "side": ("chosen", "rejected")[side]}
        return {**facts, "margin": float(batch["margins"][pair])}
    if "prompt_index" in batch:
        prompt = int(batch["prompt_index"])
        kept = {name: value for name, value in cache.record(prompt).items() if not name.startswith("_")}
        return {"prompt": prompt, "kept": kept}
    return {}


def heading(document: dict[str, Any]) -> str:
    """A heading line for a document of `describe_row`."""
    parts = [f"{document['source']} record {document['record']}", f"tokens {document['tokens']}"]
    if "pair" in document:
        parts.insert(0, f"pair {document['pair']} {document['side']}")
        if document["margin"]:
            parts.append(f"margin {document['margin']:g}")
    elif "prompt" in document:
        parts.insert(0, f"prompt {document['prompt']}")
    return ", ".join(parts)
