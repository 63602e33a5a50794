"""What a data set is: `Source` (one file, folder or named set) and `DataSpec` (a mixture made into rows)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from models.errors import UserError

KINDS = ("text", "chat")
PACKINGS = ("concat", "best_fit", "none")
OVERLONG = ("truncate", "drop", "error")
TRAIN_ON = ("assistant", "last_assistant", "all")
NAMED_PREFIXES = ("hf:", "tfds:", "seqio:")
ROLES = ("system", "user", "assistant")


def _choice(what: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"data: {what} is {value!r}; use one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of a mixture.

    `path` is a file, glob or folder (.jsonl, .jsonl.gz, .json, .json.gz, .parquet, .csv, .txt, .txt.gz), or a named
    set: `hf:name[:split]` (`datasets`), `tfds:name[:split]`, `seqio:task_or_mixture[:split]`.

    `weight`: its share of the rows drawn (relative to the other weights); None = natural size. Give it to all sources
    of a mixture or to none. `skip` and `limit` count records in reading order, so `Source(p, limit=100)` and
    `Source(p, skip=100)` never share one. After that `count` (records) or `fraction` (of the records; 2.5 = two full
    passes and a random half) resamples, seeded by `DataSpec.seed`: two names, so 1.0 can never be read as one record.

    Columns: `text_field` for kind "text"; for kind "chat" `fields`, a mapping from role to column in the order of the
    turns (`{"user": "question", "assistant": "answer"}`), else `messages_field`, else prompt and completion columns.
    `text_unit`: what one document of a .txt file is: the whole file, a line, or a paragraph (parted by empty lines).
    `subset` is the configuration of an `hf:` set; `module` is imported first, where it registers a `seqio:` task.
    """

    path: str
    weight: float | None = None
    skip: int = 0
    limit: int | None = None
    count: int | None = None
    fraction: float | None = None
    text_field: str = "text"
    messages_field: str = "messages"
    fields: Mapping[str, str] | tuple[tuple[str, str], ...] | None = None
    text_unit: Literal["file", "line", "paragraph"] = "file"
    subset: str | None = None
    module: str | None = None

    def __post_init__(self):
        if not self.path:
            raise UserError("data: a source needs a path")
        if self.weight is not None and not self.weight > 0:
            raise UserError(f"data: weight {self.weight} of source {self.path} must be above 0; leave the source out")
        if self.count is not None and self.fraction is not None:
            raise UserError(f"data: source {self.path} has both count and fraction; give one")
        for name in ("skip", "limit", "count", "fraction"):
            value = getattr(self, name)
            if value is not None and (value < 0 or (value == 0 and name != "skip")):
                raise UserError(f"data: {name} {value} of source {self.path} must be above 0")
        _choice(f"text_unit of source {self.path}", self.text_unit, ("file", "line", "paragraph"))
        for name in ("weight", "fraction"):  # 3 and 3.0 are one weight and must give one key
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.fields is not None:
            pairs = self.fields.items() if isinstance(self.fields, Mapping) else self.fields
            pairs = tuple((str(role), str(column)) for role, column in pairs)
            unknown = [role for role, _ in pairs if role not in ROLES]
            if unknown:
                raise UserError(f"data: fields of {self.path} name the role {unknown[0]!r}; use {', '.join(ROLES)}")
            object.__setattr__(self, "fields", pairs)  # hashable, like the rest of a frozen dataclass

    @property
    def named(self) -> bool:
        """True for a set known by name (`hf:`, `tfds:`, `seqio:`) rather than by a path on disk."""
        return self.path.startswith(NAMED_PREFIXES)


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """All that decides the bytes of a packed cache.

    `tokenizer`: `sp:/path.model` or `hf:folder`, `hf:tokenizer.json`, `hf:hub/name`. `sequence_length` S is the number
    of input tokens in a row. `packing`: "concat" joins documents with EOS and cuts windows of S (the last token of a
    window is the first of the next, so every token is a target once); "best_fit" packs whole documents by best-fit
    decreasing; "none" puts one document in a row. `document_mask=False` lets tokens attend across the documents of a
    row, as OLMo 2's pre-training does. `overlong` says what happens to a document above S tokens where documents stay
    whole. `train_on` chooses the turns that carry loss (kind "chat").

    `repetition_filter`: the n-gram filter of OLMo 2 (see `filters`): drops whole documents, or zeroes the loss of a
    window under "concat". `temperature` T samples sources at rates proportional to rows^(1/T), or to weight^(1/T)
    where weights are given. `compat="tulu25"` trains what the Tülu 2.5 code also trained: the newline after the EOS of
    a turn and headers with no untrained turn before them. `on_bad="skip"` counts bad records instead of stopping.
    """

    sources: tuple[Source, ...]
    tokenizer: str
    sequence_length: int
    kind: Literal["text", "chat"] = "text"
    template: str | None = None
    packing: Literal["concat", "best_fit", "none"] = "concat"
    document_mask: bool = True
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    train_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    add_bos: bool = False
    repetition_filter: bool = False
    temperature: float | None = None
    compat: Literal["tulu25"] | None = None
    on_bad: Literal["error", "skip"] = "error"
    seed: int = 42

    def __post_init__(self):
        sources = (self.sources,) if isinstance(self.sources, Source) else tuple(self.sources)
        object.__setattr__(self, "sources", sources)
        if not sources:
            raise UserError("data: sources is empty; give at least one Source")
        _choice("kind", self.kind, KINDS)
        _choice("packing", self.packing, PACKINGS)
        _choice("overlong", self.overlong, OVERLONG)
        _choice("train_on", self.train_on, TRAIN_ON)
        _choice("on_bad", self.on_bad, ("error", "skip"))
        _choice("compat", self.compat, (None, "tulu25"))
        if self.sequence_length < 2:
            raise UserError(f"data: sequence_length {self.sequence_length} must be at least 2")
        if self.temperature is not None and not self.temperature > 0:
            raise UserError(f"data: temperature {self.temperature} must be above 0")
        if self.temperature is not None:
            object.__setattr__(self, "temperature", float(self.temperature))
        if len({source.weight is None for source in sources}) == 2:
            bare = next(source.path for source in sources if source.weight is None)
            raise UserError(f"data: source {bare} has no weight but others have; give a weight to all or to none")
        self._check_kind()

    def _check_kind(self) -> None:
        if self.kind == "text":
            if self.template is not None:
                raise UserError(f"data: template {self.template!r} needs kind 'chat'")
            if self.compat is not None:
                raise UserError(f"data: compat {self.compat!r} needs kind 'chat'")
            return
        from easylm_jax.data.templates import get_template

        if self.template is None:
            raise UserError("data: kind 'chat' needs a template, for example 'tulu'")
        get_template(self.template)
        if self.add_bos:
            raise UserError("data: add_bos is for kind 'text'; with kind 'chat' the template says where BOS stands")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is the way back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSpec:
        """Build a spec from JSON values. Raises UserError for an unknown or missing field."""
        sources = values.get("sources", ())
        sources = tuple(source if isinstance(source, Source) else _construct(Source, source) for source in sources)
        return _construct(cls, {**values, "sources": sources})


def _construct(cls: type, values: Mapping[str, Any]) -> Any:
    if isinstance(values, str) and cls is Source:
        return Source(values)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"data: {cls.__name__} has no field {unknown[0]!r}; its fields are {', '.join(fields)}")
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise UserError(f"data: {cls.__name__} needs the field {missing[0]!r}")
    return cls(**values)
