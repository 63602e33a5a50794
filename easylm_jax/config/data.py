"""Data sets: `Source` (one file, folder or named set) and `DataSpec` (a mixture of sources, packed into rows)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from easylm_jax.config import fields
from easylm_jax.config.bounds import Count, Positive, Seed
from models.config import VisionConfig, added_later
from models.errors import UserError

NAMED_PREFIXES = ("hf:", "tfds:", "seqio:")
ROLES = ("system", "user", "assistant")
# What `Source.fields` may name, by kind of data.
FIELDS = {
    "text": ROLES,
    "chat": ROLES,
    "preference": ("system", "prompt", "chosen", "rejected", "margin"),
    "prompts": (*ROLES, "prompt", "chosen", "rejected"),
    "tokens": (),
    "pictures": (),
}
# Left out of a cache's key at their defaults, so that caches made before these fields existed stay valid. `streaming`
# changes how records are downloaded but not the records, so the key never includes it.
ADDED_LATER = {
    "source": ("format", "data_files", "data_dir"),
    "spec": (
        "max_side_length", "max_pairs_per_row", "keep", "order", "vision", "images", "max_crops", "row_crops",
        "annotation_weight", "document_length",
    ),
}  # fmt: skip
PICTURE_FIELDS = ("vision", "images", "max_crops", "row_crops", "annotation_weight", "document_length")


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of a mixture: files, or a named set.

    `skip` and `limit` count records in reading order; after them `count` or `fraction` resamples.
    """

    path: str
    """A file, glob or folder (.jsonl, .json, .parquet, .csv, .txt, the text ones also with .gz or .zst), files of a
    stage (`stage:<name>/<file>`), or a named set: `hf:name[:split]`, `tfds:name[:split]`,
    `seqio:task_or_mixture[:split]`."""
    weight: float | None = None
    """Share of the rows drawn, relative to the other weights; None for the natural size. All sources of a mixture have
    one or none."""
    skip: int = 0
    """Records left out at the start, in reading order."""
    limit: int | None = None
    """Records read after `skip`; None for all. `Source(p, limit=100)` and `Source(p, skip=100)` share no record."""
    count: int | None = None
    """Resamples to so many records, seeded by `DataSpec.seed`."""
    fraction: float | None = None
    """Resamples to this multiple of the records: 2.5 is two full passes and a random half."""
    text_field: str = "text"
    """The column of a document (kind "text")."""
    messages_field: str = "messages"
    """The column of a conversation, a list of `{"role", "content"}`."""
    fields: Mapping[str, str] | tuple[tuple[str, str], ...] | None = None
    """Columns by role, in the order of the turns: `{"user": "question", "assistant": "answer"}`; of pairs prompt,
    chosen, rejected, margin. Without it the usual columns are looked for (docs/data_formats.md)."""
    text_unit: Literal["file", "line", "paragraph"] = "file"
    """One document of a .txt file: the whole file, a line, or a paragraph (separated by empty lines)."""
    subset: str | None = None
    """The configuration of an `hf:` set."""
    module: str | None = None
    """A module that is imported first, where it registers a `seqio:` task."""
    format: Literal["hh"] | None = None
    """"hh": chosen and rejected are transcripts, "\n\nHuman: …\n\nAssistant: …", as in hh-rlhf."""
    data_files: str | tuple[str, ...] | None = None
    """Files of the repository or folder of an `hf:` set."""
    data_dir: str | None = None
    """A folder of the repository of an `hf:` set."""
    streaming: bool = False
    """Whether records of an `hf:` set are read as they arrive and not downloaded first."""
    base: str | None = added_later(None)
    """Where the files of a list lie that have no absolute path, such as `gs://bucket/preprocessed` (kind "tokens");
    None is beside the list."""

    def __post_init__(self):
        if isinstance(self.data_files, list):
            object.__setattr__(self, "data_files", tuple(self.data_files))
        if isinstance(self.fields, list):  # pairs, as JSON has them
            pairs = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in self.fields)
            object.__setattr__(self, "fields", pairs)
        fields.check_types(self, "data.sources")
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
        for name in ("data_files", "data_dir", "streaming"):
            if getattr(self, name) and not self.path.startswith("hf:"):
                raise UserError(f"data: {name} of source {self.path} is for hf: sets only")
        for name in ("weight", "fraction"):  # 3 and 3.0 are one weight and must give one key
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.fields is not None:
            pairs = self.fields.items() if isinstance(self.fields, Mapping) else self.fields
            pairs = tuple((str(role), str(column)) for role, column in pairs)
            known = dict.fromkeys(name for names in FIELDS.values() for name in names)
            unknown = [role for role, _ in pairs if role not in known]
            if unknown:
                raise UserError(f"data: fields of {self.path} name the role {unknown[0]!r}; use {', '.join(known)}")
            object.__setattr__(self, "fields", pairs)  # hashable, like the rest of a frozen dataclass

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """`fields` as (role, column), in order; empty where they are not set."""
        if self.fields is None:
            return ()
        return tuple(self.fields.items()) if isinstance(self.fields, Mapping) else self.fields

    @property
    def named(self) -> bool:
        """True for a set known by name (`hf:`, `tfds:`, `seqio:`) rather than by a path on disk."""
        return self.path.startswith(NAMED_PREFIXES)


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """A data set as a packed cache of rows. Its fields decide every byte of the cache.

    "concat" joins documents with EOS and cuts windows of S tokens; the last token of a window is the first of the next,
    so that every token is a target once. The two sides of a pair share a row (see `preference`); a prompt has a row of
    its own (see `prompts`).
    """

    sources: tuple[Source, ...]
    """The files or sets, one or a mixture."""
    tokenizer: str
    """`sp:FILE` (SentencePiece), `hf:FOLDER`, `hf:tokenizer.json` or `hf:OWNER/NAME`, or `stage:<name>` of a
    `Tokenizer` stage."""
    sequence_length: Count
    """Input tokens of a row; of prompts, the most tokens of a prompt."""
    kind: Literal["text", "chat", "preference", "prompts", "tokens", "pictures"] = "text"
    """What a record is: a document, a conversation, a pair of responses, a prompt to respond to, or a picture and what
    is said about it (docs/molmo.md). "tokens" are shards that hold token ids already and are read in place
    (docs/shards.md)."""
    template: str | None = None
    """The chat template (docs/data.md), which all kinds but "text" need."""
    packing: Literal["concat", "best_fit", "none", "files"] | None = None
    """"concat" joins documents and cuts windows, "best_fit" packs whole documents, "none" puts one in a row, "files"
    cuts windows within each shard and drops its tail. None is "best_fit" for pairs, "none" for prompts, "files" for
    shards, else "concat"."""
    document_mask: bool = True
    """Whether tokens see only their own document. OLMo 2's pre-training lets them see the others of the row."""
    overlong: Literal["truncate", "drop", "error"] | None = None
    """What happens to a document above `sequence_length` where documents are not split. None is "drop" for prompts,
    else "truncate"."""
    train_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """The turns whose tokens are trained (conversations and pairs)."""
    add_bos: bool = False
    """Whether a document begins with the BOS token (kind "text"; templates place their own)."""
    repetition_filter: bool = False
    """OLMo 2's n-gram filter (`data/filters.py`): drops documents that repeat a unit, or zeroes the loss of a window
    under "concat"."""
    temperature: Positive | None = None
    """Samples sources at rates proportional to rows^(1/T), or weight^(1/T) where weights are given; None for their own
    rates."""
    compat: Literal["tulu25"] | None = None
    """"tulu25" also trains what the Tülu 2.5 code trained: the newline after the EOS of a turn, and headers with no
    untrained turn before them."""
    on_bad: Literal["error", "skip"] = "error"
    """Whether a record that cannot be read stops the build or is skipped and counted."""
    seed: Seed = 42
    """Seed of resampling."""
    max_side_length: Count | None = None
    """The most tokens of one side of a pair; None for half of `sequence_length`."""
    max_pairs_per_row: Count | None = None
    """The most pairs of a row; None chooses from the data."""
    keep: tuple[str, ...] | None = None
    """Columns whose values are kept with each prompt, for verifiers; None for all."""
    order: Literal["olmo"] | None = added_later(None)
    """"olmo" shuffles the windows of shards as OLMo's trainer does with the same seed; None in the order of all other
    data."""
    vision: VisionConfig | None = None
    """What the model sees pictures with, which decides their crops and tokens (kind "pictures", and pairs and prompts
    about pictures)."""
    images: str | None = None
    """The folder that paths of pictures are relative to; None for that of the records."""
    max_crops: Count | None = None
    """The most crops of a picture besides the small copy of the whole; None for the model's."""
    row_crops: Count | None = None
    """The most crops of a row; None for what packing by tokens gives, and for one picture of a prompt. Batches have so
    many, whatever is in them."""
    document_length: Count | None = None
    """The most tokens of a picture and its annotations, where a row holds several (kind "pictures"); None for
    `sequence_length`."""
    annotation_weight: Literal["root"] | None = None
    """"root" weighs the tokens of n annotations of one picture by 1/√n, as Molmo was fine-tuned; None by 1."""

    def __post_init__(self):
        for name in ("sources", "keep"):  # one alone, or a list of JSON
            value = getattr(self, name)
            value = (value,) if isinstance(value, (Source, str)) else value
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        fields.check_types(self, "data")
        sources = self.sources
        if not sources:
            raise UserError("data: sources is empty; give at least one Source")
        packings = {"preference": "best_fit", "prompts": "none", "tokens": "files", "pictures": "best_fit"}
        usual = {"packing": packings.get(self.kind, "concat")}
        usual["overlong"] = "drop" if self.kind == "prompts" else "truncate"
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.sequence_length < 2:
            raise UserError(f"data: sequence_length {self.sequence_length} must be at least 2")
        if self.temperature is not None:
            object.__setattr__(self, "temperature", float(self.temperature))
        if len({source.weight is None for source in sources}) == 2:
            bare = next(source.path for source in sources if source.weight is None)
            raise UserError(f"data: source {bare} has no weight but others have; give a weight to all or to none")
        self._check_kind()

    def _check_kind(self) -> None:
        self._check_options()
        for source in self.sources:
            strange = [name for name, _ in source.columns if name not in FIELDS[self.kind]]
            if strange:
                allowed = ", ".join(FIELDS[self.kind])
                raise UserError(
                    f"data: fields of {source.path} name {strange[0]!r}, but kind {self.kind!r} uses {allowed}"
                )
        if self.kind in ("text", "tokens"):
            if self.template is not None:
                raise UserError(f"data: template {self.template!r} needs kind 'chat'")
            if self.compat is not None:
                raise UserError(f"data: compat {self.compat!r} needs kind 'chat'")
            if self.kind == "tokens":
                self._check_shards()
            return
        from easylm_jax.config.chat_templates import get_template

        if self.template is None:
            raise UserError(f"data: kind {self.kind!r} needs a template, for example 'tulu'")
        if self.template != "tokenizer":  # the one that the tokenizer carries
            get_template(self.template)
        if self.add_bos:
            raise UserError(f"data: add_bos is for kind 'text'; with kind {self.kind!r} the template places BOS")

    def _check_shards(self) -> None:
        """Checks what only shards ask for, which are read as they are."""
        if self.packing not in ("files", "concat"):
            raise UserError(f"data: packing of kind 'tokens' is 'files' or 'concat', not {self.packing!r}")
        if self.add_bos:
            raise UserError("data: add_bos is for kind 'text'; shards are read as they are")
        if self.order is not None and (self.temperature is not None or self.sources[0].weight is not None):
            raise UserError("data: order 'olmo' shuffles all windows together; leave out weights and temperature")
        for source in self.sources:
            if source.path.startswith(NAMED_PREFIXES):
                raise UserError(f"data: {source.path} holds records; kind 'tokens' reads .npy shards")
            if source.count is not None or (source.fraction or 1) % 1:
                raise UserError(
                    f"data: shards of {source.path} are read whole times; fraction is a whole number, skip and limit "
                    "count windows, and a list of files names some of them"
                )

    def _check_options(self) -> None:
        """Checks options that only one kind of data has."""
        owners = {"max_side_length": "preference", "max_pairs_per_row": "preference", "keep": "prompts"}
        owners["order"] = "tokens"
        for name, kind in owners.items():
            if getattr(self, name) is not None and self.kind != kind:
                raise UserError(f"data: {name} is for kind {kind!r}, this is kind {self.kind!r}")
        if self.packing == "files" and self.kind != "tokens":
            raise UserError(f"data: packing 'files' is for kind 'tokens', this is kind {self.kind!r}")
        bare = next((source for source in self.sources if source.base is not None and self.kind != "tokens"), None)
        if bare is not None:
            raise UserError(f"data: base of source {bare.path} is for kind 'tokens'")
        some = dict.fromkeys(("prompts", "preference"), PICTURE_FIELDS[:4])
        allowed = {"pictures": PICTURE_FIELDS, **some}.get(self.kind, ())
        strange = [name for name in PICTURE_FIELDS if getattr(self, name) is not None and name not in allowed]
        if strange:
            raise UserError(f"data: {strange[0]} is for kind 'pictures', this is kind {self.kind!r}")
        if self.kind == "pictures" or self.vision is not None:
            self._check_pictures()
        if self.kind == "pictures":
            return
        if self.kind in ("text", "chat", "tokens"):
            formatted = next((source for source in self.sources if source.format is not None), None)
            if formatted is not None:
                what = f"format {formatted.format!r} of source {formatted.path}"
                raise UserError(f"data: {what} is for kinds 'preference' and 'prompts'")
            return
        if not self.document_mask:
            raise UserError(f"data: document_mask=False is for kinds 'text' and 'chat', not for {self.kind!r}")
        if self.kind == "prompts":
            if self.packing != "none":
                raise UserError("data: kind 'prompts' puts one prompt in a row; leave packing out")
            if self.overlong == "truncate":
                raise UserError("data: a prompt cannot be truncated; overlong is 'drop' or 'error' for kind 'prompts'")
            return
        if self.packing == "concat":
            raise UserError("data: pairs stay whole; packing is 'best_fit' or 'none' for kind 'preference'")
        if self.train_on == "all":
            raise UserError("data: train_on is 'assistant' or 'last_assistant' for kind 'preference'")
        limit = self.max_side_length
        if limit is not None and not 2 <= limit <= self.sequence_length - 2:
            raise UserError(f"data: max_side_length {limit} must lie between 2 and sequence_length - 2")
        if self.sequence_length < 4:
            raise UserError(f"data: sequence_length {self.sequence_length} has no room for the two sides of a pair")

    def _check_pictures(self) -> None:
        if self.template not in (None, "molmo", "molmo_caption"):
            raise UserError(f"data: template {self.template!r} is not for pictures; use 'molmo' or 'molmo_caption'")
        if self.vision is None:
            raise UserError("data: kind 'pictures' needs vision, that of the model: for example preset(...).vision")
        if self.longest > self.sequence_length:
            raise UserError(f"data: document_length {self.document_length} is above sequence_length")
        if self.packing == "concat" or not self.document_mask or self.repetition_filter or self.compat:
            raise UserError(
                "data: kind 'pictures' keeps documents whole and apart: packing is 'best_fit' or 'none', and "
                "document_mask, repetition_filter and compat are left out"
            )

    @property
    def side_limit(self) -> int:
        """The most tokens of one side of a pair."""
        return self.max_side_length or self.sequence_length // 2

    @property
    def longest(self) -> int:
        """The most tokens of one document, or of one side of a pair with its prompt."""
        return self.side_limit if self.kind == "preference" else self.document_length or self.sequence_length

    @property
    def prompt_crops(self) -> int:
        """The most crops of the pictures of a prompt: those of one picture, or `row_crops`."""
        return self.row_crops or 1 + (self.max_crops or (self.vision.max_crops if self.vision else 0))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSpec:
        """A spec from JSON values; `UserError` for an unknown or missing field."""
        if not isinstance(values, Mapping) or not isinstance(values.get("sources", []), (list, tuple)):
            raise UserError("data: a specification is an object whose sources are a list")
        sources = values.get("sources", ())
        sources = tuple(source if isinstance(source, Source) else _construct(Source, source) for source in sources)
        vision = values.get("vision")
        vision = _construct(VisionConfig, vision) if isinstance(vision, Mapping) else vision
        return _construct(cls, {**values, "sources": sources, "vision": vision})


def _construct(cls: type, values: Mapping[str, Any]) -> Any:
    if isinstance(values, str) and cls is Source:
        return Source(values)
    if not isinstance(values, Mapping):
        raise UserError(f"data: {values!r} is not the fields of a {cls.__name__}")
    known = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"data: {cls.__name__} has no field {unknown[0]!r}; its fields are {', '.join(known)}")
    required = [name for name, field in known.items() if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise UserError(f"data: {cls.__name__} needs the field {missing[0]!r}")
    return cls(**values)
