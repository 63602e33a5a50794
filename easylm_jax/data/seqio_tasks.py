"""Declares seqio Tasks and Mixtures over `Source`s, for programs that use seqio.

TensorFlow and seqio are imported inside functions only. Training reads caches and does not use this module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from easylm_jax.config.data import DataSpec, Source
from easylm_jax.data.examples import messages_of, text_of
from easylm_jax.data.fill import sampled_records
from easylm_jax.data.records import BadRecord
from easylm_jax.data.seqio_read import _seqio, mixture_rates, read_task
from models.errors import UserError

_SPLITS: dict[str, dict[str, Source]] = {}  # by the name of each declared task


def declared_sources(source: Source) -> list[Source]:
    """What a `seqio:` source reads: the sources of its task, or of its mixture's tasks, that were declared here."""
    name, _, split = source.path.removeprefix("seqio:").partition(":")
    tasks = mixture_rates(name, source.module) or [name]
    found = (_SPLITS.get(task, {}).get(split or "train") for task in tasks)
    return [one for one in found if one is not None]


def declare_task(
    name: str,
    splits: Source | Mapping[str, Source],
    *,
    kind: Literal["text", "chat"] = "text",
    encode: DataSpec | None = None,
    seed: int = 42,
):
    """Registers and returns the seqio Task `name`, with one source for each split (a single Source is "train").

    A source's `count` or `fraction` resamples it with `seed`.

    Its examples hold `text`, or for kind "chat" `messages` as a JSON string. With `encode`, a spec whose tokenizer,
    template and `train_on` apply, they also hold `targets` (token ids) and `loss_weights`, as in training.
    """
    seqio = _seqio()
    import tensorflow as tf

    splits = {"train": splits} if isinstance(splits, Source) else dict(splits)
    column = "text" if kind == "text" else "messages"
    signature = {column: tf.TensorSpec((), tf.string)}
    raw = seqio.PassThroughVocabulary(size=0)
    features = {column: seqio.Feature(raw, add_eos=False, required=False, dtype=tf.string, rank=0)}
    encoder = _task_encoder(encode, kind) if encode is not None else None
    if encoder is not None:
        signature |= {"targets": tf.TensorSpec((None,), tf.int32), "loss_weights": tf.TensorSpec((None,), tf.float32)}
        size = encoder.tokenizer.vocab_size
        features["targets"] = seqio.Feature(seqio.PassThroughVocabulary(size=size), add_eos=False)
        weights = seqio.Feature(raw, add_eos=False, dtype=tf.float32)
        features["loss_weights"] = weights

    def examples(split: str) -> Iterator[dict[str, Any]]:
        source = splits[split]
        for record, where in sampled_records(source, seed):
            yield from _task_examples(record, where, source, kind, encoder)

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None):
        del shuffle_files, seed  # records are in file order; the reader shuffles
        return tf.data.Dataset.from_generator(lambda: examples(split), output_signature=signature)

    source = seqio.FunctionDataSource(dataset_fn=dataset, splits=tuple(splits))
    try:
        task = seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features=features, metric_fns=[])
    except ValueError as error:
        raise UserError(f"data: cannot register the seqio task {name!r}: {error}") from None
    _SPLITS[name] = splits
    return task


def _task_encoder(spec: DataSpec, kind: str):
    from easylm_jax.data.examples import Encoder
    from easylm_jax.data.tokenizer import load_tokenizer

    if spec.kind != kind:
        raise UserError(f"data: a task of kind {kind!r} cannot encode with a spec of kind {spec.kind!r}")
    return Encoder(spec, load_tokenizer(spec.tokenizer))


def _task_examples(record: Any, where: str, source: Source, kind: str, encoder: Any) -> Iterator[dict[str, Any]]:
    from easylm_jax.data.examples import Counts

    try:
        if isinstance(record, BadRecord):
            raise record
        if kind == "text":
            example: dict[str, Any] = {"text": text_of(record, source, where)}
        else:
            example = {"messages": json.dumps(messages_of(record, source, where), ensure_ascii=False)}
        if encoder is None:
            yield example
            return
        for encoded in encoder.encode([(record, where)], source, Counts(), [0]):
            marks = [1.0] * len(encoded.ids) if encoded.trained is None else encoded.trained.tolist()
            yield {**example, "targets": encoded.ids, "loss_weights": marks}
    except BadRecord as error:
        raise UserError(f"data: {error}") from None


def declare_mixture(name: str, tasks: Mapping[str, float] | Sequence[str], *, temperature: float | None = None):
    """Registers and returns the seqio Mixture `name`.

    `tasks`: rates by name of the task, or only names, with the number of examples as the rate. With `temperature` T a
    rate r becomes r^(1/T).
    """
    seqio = _seqio()
    power = 1.0 / (temperature or 1.0)
    if isinstance(tasks, Mapping):
        rates: list[tuple[str, Any]] = [(task, float(rate) ** power) for task, rate in tasks.items()]
    else:
        rates = [(task, lambda registered: _count(registered.name) ** power) for task in tasks]
    try:
        return seqio.MixtureRegistry.add(name, rates)
    except ValueError as error:
        raise UserError(f"data: cannot register the seqio mixture {name!r}: {error}") from None


def _count(task: str) -> int:
    return sum(1 for _ in read_task(task, "train", None))
