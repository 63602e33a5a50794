"""Loads models by name: a stage, `run:<folder>`, `hf:<folder or hub name>`, or freshly initialised parameters."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax

import models
from easylm_jax.checkpoint import hub, store
from easylm_jax.checkpoint.checkpointer import restore_params
from easylm_jax.config import Compute
from easylm_jax.config.workspace import checkpoint_of, read_done
from easylm_jax.data import load_tokenizer, tokenizer_template
from easylm_jax.data.tokenizer import Tokenizer, differing_token, restrict_vocab
from easylm_jax.data.tokenizer_template import template_file
from easylm_jax.runtime import sharding
from easylm_jax.runtime.mesh import make_mesh
from models import reading, registry
from models.config import DecoderConfig, Experts, RopeScaling, VisionConfig
from models.decoder import cast_kernels, score_kernel
from models.errors import UserError
from models.hf.convert import read_config
from models.model import Model
from models.reading import Damaged

PyTree = Any
Load = Callable[..., PyTree]


class _Described(TypedDict, total=False):
    """What is read of a stage's `config.json`."""

    model: dict[str, Any] | str | None


def is_checkpoint(folder: str) -> bool:
    """Whether `folder` is a stage's folder, its `checkpoints` folder or a step folder."""
    path = Path(folder)
    return (
        (path / "checkpoints").is_dir()
        or (path / store.MANIFEST).is_file()
        or bool(path.is_dir() and store.committed_steps(path))
    )


def model_of(folder: str) -> DecoderConfig:
    """The configuration of the model in a checkpoint: from its metadata, otherwise from `config.json` of its stage.

    Raises:
        UserError: neither has a model configuration.
    """
    step_folder = store.resolve(folder)
    description = store.read_meta(step_folder).get("model")
    stage_config = step_folder.parent.parent / "config.json"
    if description is None and stage_config.is_file():
        description = reading.read_json(stage_config, _Described).get("model")
    if description is None:
        raise UserError(f"{step_folder} has no model configuration; name a preset with --model")
    return read_model_config(description)


def read_model_config(description: str | Mapping[str, Any]) -> DecoderConfig:
    """A model configuration from a preset's name, or from the fields of a `DecoderConfig` in JSON."""
    if isinstance(description, str):
        return models.preset(description)
    fields = dict(description)
    for name, part in (("rope_scaling", RopeScaling), ("experts", Experts), ("vision", VisionConfig)):
        if fields.get(name):
            fields[name] = _config_of(part, fields[name], f"model.{name}")
    return _config_of(DecoderConfig, fields, "model")


def _config_of(kind: Any, fields: Any, what: str) -> Any:
    """A configuration from its fields in JSON; `UserError` for unknown and missing ones."""
    if not isinstance(fields, Mapping):
        raise UserError(f"the checkpoint's {what} should be an object, not {str(fields)[:60]!r}")
    known = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise UserError(
            f"the checkpoint's {what} has unknown fields {', '.join(unknown)[:100]}; use the version that wrote it"
        )
    missing = [name for name, field in known.items() if name not in fields and field.default is dataclasses.MISSING]
    if missing:
        raise UserError(f"the checkpoint's {what} has no {', '.join(missing)}; name a preset with --model")
    return kind(**fields)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that can generate: its parameters on `mesh`, its tokenizer, the chat template that it was trained with
    (None: plain text), and whether its prompts start with a BOS token."""

    decoder: Model
    params: PyTree
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    template: str | None
    add_bos: bool


def load(model: str, *, tokenizer: str | None = None, mesh: jax.sharding.Mesh | None = None) -> LoadedModel:
    """Loads a model for generation: a stage's or checkpoint's folder, or `hf:<folder or hub name>`.

    `mesh` defaults to all devices. The compute dtype is that of the stage; for a Hugging Face model it is float32 on a
    CPU and bfloat16 elsewhere.

    Raises:
        UserError: there is no model, it is a reward model, or its tokenizer is not known or too large.
    """
    init, meta, known_tokenizer = resolve_model(model)
    stage = meta.get("config") or {}
    dtype = (stage.get("compute") or {}).get("dtype") or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    mesh = make_mesh("fsdp=-1") if mesh is None else mesh
    source = model_from(init, mesh, compute=Compute(dtype=dtype))
    if source.config.scalar_head:
        raise UserError(f"{model} is a reward model (scalar head), which cannot generate; give the policy's folder")
    loaded = model_tokenizer(model, source.config, meta, tokenizer or known_tokenizer, own=known_tokenizer)
    with jax.set_mesh(mesh):
        params = source.frozen(mesh)
    data = stage.get("data") or {}
    decoder = restrict_vocab(source.decoder, loaded)
    return LoadedModel(decoder, params, mesh, loaded, data.get("template"), bool(data.get("add_bos")))


def model_tokenizer(
    model: str, config: DecoderConfig, meta: Mapping[str, Any], spec: str | None, *, own: str | None
) -> Tokenizer:
    """The tokenizer `spec` for a model with this metadata; `own` is the one that it was trained with, if known.

    Warns if the model was trained with another file of the same tokens.

    Raises:
        UserError: it is not known, cannot be read, has more tokens than the model, or has other tokens than `own`.
    """
    if not spec:
        raise UserError(
            f"the tokenizer of {model} is not known; give it with --tokenizer, such as sp:FILE or hf:FOLDER"
        )
    loaded = load_tokenizer(spec)
    if loaded.vocab_size > config.vocab:
        raise UserError(
            f"the tokenizer {loaded.spec} has {loaded.vocab_size} tokens, the model only {config.vocab}; give the "
            "model's own with --tokenizer"
        )
    if meta.get("tokenizer_hash") not in (None, loaded.hash):
        _refuse_other_tokens(model, loaded, own)
        print(f"easylm: warning: {model} was not trained with the tokenizer {loaded.spec}", file=sys.stderr)
    return loaded


def _refuse_other_tokens(model: str, tokenizer: Tokenizer, own: str | None) -> None:
    """Raises `UserError` if a tokenizer's tokens are not those of the model's own, where that one can be read."""
    try:
        why = None if own is None else differing_token(load_tokenizer(own), tokenizer)
    except UserError:  # it has been moved or deleted
        return
    if why is not None:
        raise UserError(
            f"{model} was trained with another tokenizer than {tokenizer.spec}: {why}; leave --tokenizer out"
        )


def resolve_model(model: str) -> tuple[str, dict[str, Any], str | None]:
    """(name for `model_from`, metadata of its checkpoint, tokenizer or None if that is not known) of a model."""
    path = Path(model)
    if model.startswith("hf:") or (not is_checkpoint(model) and any(path.glob("*.safetensors"))):
        folder = hub.resolve(model.removeprefix("hf:"))
        data: dict[str, Any] = {"add_bos": _adds_bos(folder)}
        if template_file(folder) is not None:
            data["template"] = tokenizer_template.NAME
        return f"hf:{folder}", {"config": {"data": data}}, f"hf:{folder}"
    folder, meta = checked_meta(path)
    return f"run:{folder}", meta, tokenizer_of(folder, meta)


def _adds_bos(folder: Path) -> bool:
    """Whether a Hugging Face tokenizer prepends its BOS token to texts (`add_bos_token`)."""
    path = folder / "tokenizer_config.json"
    return bool(reading.read_json(path).get("add_bos_token")) if path.is_file() else False


def trained_step(path: Any) -> Any:
    """The checkpoint that a finished stage passes on (from `done.json`); for other folders their newest step."""
    path = store.as_path(path)
    try:
        done = read_done(path)
        if done is None:
            return store.resolve(path)
        if "checkpoint" not in done:
            raise UserError(f"stage {path} has no model; give the folder of a stage that trains one")
        return store.resolve(checkpoint_of(path, done))
    except Damaged as error:
        raise UserError(
            f"{path / 'done.json'} is damaged ({error.why}); give one of the stage's checkpoints/<step> folders"
        ) from None


def checked_meta(path: Any) -> tuple[Any, dict[str, Any]]:
    """The step folder of a stage's or checkpoint's folder, and its metadata.

    Raises:
        UserError: there is no checkpoint, or it holds only a LoRA adapter.
    """
    folder = trained_step(path)
    meta = store.read_meta(folder)
    if (meta.get("config") or {}).get("lora") and "merged" not in folder.parts:
        raise UserError(
            f"{folder} holds only a LoRA adapter; give the folder of its finished stage, which has merged/checkpoints"
        )
    return folder, meta


def tokenizer_of(folder: Any, meta: Mapping[str, Any]) -> str | None:
    """The tokenizer that a checkpoint was trained with: a stage's of its run, at its recorded path, or its source's."""
    name = str(((meta.get("config") or {}).get("data") or {}).get("tokenizer") or "")
    if name.startswith("stage:"):  # look in the run's folder first, since the run may have been moved
        candidates = [parent / name.removeprefix("stage:") / "tokenizer.model" for parent in folder.parents[:4]]
        found = next((path for path in candidates if path.is_file()), None)
        if found is not None:
            return f"sp:{found}"
    if meta.get("tokenizer"):
        return str(meta["tokenizer"])
    return _with_tokenizer(str(meta["source"])) if meta.get("source") else None


def _with_tokenizer(source: str) -> str | None:
    """The tokenizer in the Hugging Face folder that a checkpoint was converted from; None if it has only weights."""
    name = source.removeprefix("hf:")
    try:
        folder = hub.resolve(name)
    except UserError:  # moved, or no network: reported where the tokenizer is needed
        return f"hf:{name}"
    return f"hf:{folder}" if any(folder.glob("tokenizer*")) else None


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model and `load(abstract parameters with shardings) → parameters`; None initialises fresh parameters."""

    decoder: Model
    load: Load | None
    folder: Path | None = None

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    def layout(self, mesh: jax.sharding.Mesh) -> PyTree:
        """Shardings of the parameters."""
        return sharding.parameter_shardings(self.decoder.abstract_params(), self.decoder.sharding_rules, mesh)

    def params(self, mesh: jax.sharding.Mesh, seed: int = 0) -> PyTree:
        """The parameters in float32 on the mesh; fresh ones are initialised from `seed`."""
        layout = self.layout(mesh)
        if self.load is None:
            key = jax.random.fold_in(jax.random.key(seed), 1)
            return jax.jit(self.decoder.init, out_shardings=layout)(key)
        return self.load(sharding.with_shardings(self.decoder.abstract_params(), layout))

    def frozen(self, mesh: jax.sharding.Mesh) -> PyTree:
        """The parameters of a model that is not trained, with kernels and tables cast to the compute dtype.

        They are cast to that dtype wherever they are used anyway, so results are bit-identical.
        """
        return jax.jit(functools.partial(cast_kernels, dtype=self.decoder.compute.dtype))(self.params(mesh))


def fresh_config(shape: str | DecoderConfig, tokenizer: Tokenizer | None) -> DecoderConfig:
    """The configuration of a fresh model: `shape`, or the preset of that name.

    A preset of a scaling ladder gets the vocabulary of the tokenizer that it will be trained with, if that is known.
    """
    if not isinstance(shape, str):
        return shape
    config = models.preset(shape)
    if tokenizer is None or not registry.fits_tokenizer(shape):
        return config
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    return registry.with_vocabulary(config, tokenizer.vocab_size, **ids)


def model_from(
    name: str | None, mesh: jax.sharding.Mesh, *, compute: Compute,
    shape: str | DecoderConfig | None = None, dropout: float = 0.0, scalar_head: bool = False, seed: int = 0,
    head_std: float | None = None,
) -> ModelSource:  # fmt: skip
    """The model `name` (`hf:<name>` or `run:<folder>`; `Workspace.model` resolves stages), or a fresh one of `shape`.

    With `scalar_head` the vocabulary head of a language model is replaced by a scalar head, initialised from `seed`
    with standard deviation `head_std` (`models.decoder.score_kernel`).
    """
    compute, placement = sharding.with_supported_attention(compute, mesh), sharding.placement_of(mesh)
    load: Load | None = None
    folder: Path | None = None
    if name is None:
        assert shape is not None
        config = models.preset(shape) if isinstance(shape, str) else shape
    elif name.startswith("hf:"):
        folder = hub.resolve(name.removeprefix("hf:"))
        config = read_config(folder)
        load = functools.partial(_load_hf, folder, compute)
    else:
        folder = Path(name.removeprefix("run:"))
        config = model_of(str(folder))
        load = functools.partial(restore_params, folder)
    if scalar_head and not config.scalar_head:
        if load is not None:
            load = functools.partial(
                _with_scalar_head, models.build(config, compute, placement), load, seed, mesh, head_std
            )
        config = config.replace(scalar_head=True)
    return ModelSource(models.build(config.replace(dropout=dropout), compute, placement), load, folder)


def _with_scalar_head(
    source: Model, load: Load, seed: int, mesh: jax.sharding.Mesh, std: float | None, abstract: Any
) -> Any:
    """The parameters of a language model with a freshly initialised scalar head instead of the vocabulary head."""
    layout = sharding.parameter_shardings(source.abstract_params(), source.sharding_rules, mesh)
    params = load(sharding.with_shardings(source.abstract_params(), layout))
    params.pop("head", None)
    place = abstract["score"]["kernel"].sharding
    fresh = jax.jit(functools.partial(score_kernel, width=source.config.width, std=std), out_shardings=place)
    return {**params, "score": {"kernel": fresh(jax.random.fold_in(jax.random.key(seed), 4))}}


def _load_hf(folder: Path, compute: Compute, abstract: Any) -> Any:
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return models.load_hf(folder, compute=compute, shardings=layout)[1]
