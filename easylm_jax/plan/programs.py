"""The programs of a stage, lowered from shapes for the devices of a pod, and the arrays that stay resident with each.

| stage | programs |
|---|---|
| pre-training, SFT, reward model, DPO | `train`; `reference` where DPO scores the starting model |
| PPO, GRPO, online DPO | `policy`, `value` (updates), `score`, `reward`, `prefill`, `decode` |
| best-of-N, MajorityVote, Evaluate | `prefill`, `decode` |
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.checkpoint.load import ModelSource
from easylm_jax.config import RL, Evaluate, Generate, Recipe, Stage, Train
from easylm_jax.decode import Engine, rollout
from easylm_jax.decode.loop import Rows
from easylm_jax.decode.sampling import Mode, Settings
from easylm_jax.objectives import base as objectives_base
from easylm_jax.objectives import score_responses
from easylm_jax.objectives.forward import images_of
from easylm_jax.plan import shapes
from easylm_jax.runtime import compiler, sharding
from easylm_jax.runtime.monitor import model_flops_per_token
from easylm_jax.runtime.sharding import bytes_of
from easylm_jax.train import reference_logprobs
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.rl import advantages
from easylm_jax.train.rl.programs import RLPrograms
from easylm_jax.train.state import TrainStateInit
from easylm_jax.train.step import make_train_step
from models.config import Compute, DecoderConfig
from models.decoder import cast_kernels

PyTree = Any
_LAYOUTS: dict[Any, PyTree] = {}  # shardings of decoding weights by model and mesh, since they cost a compilation
UNKNOWN_STEPS = 10**6  # for learning-rate schedules, where the number of steps is not known


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a stage. Bytes and FLOPs are per device.

    Attributes:
        name: such as "train" or "decode".
        lower: traces and lowers it.
        resident: bytes of arrays on the device that are not its arguments, by role.
        flops: model FLOPs of one run (1 pass for forward, 3 for training).
        runs: number of runs in one step of the stage.
        options: compiler options, which are not part of the program's text.
        trip_count: iterations of a loop whose length is an argument.
        min_bytes: memory that one run must read at least, a lower bound of its time; 0 if FLOPs are the limit.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    resident: dict[str, int]
    flops: float
    runs: float
    options: compiler.Options | None = None
    trip_count: int = 1
    min_bytes: float = 0.0


# (stage, recipe, the recipe's mesh) → the programs of the stage
ProgramBuilder = Callable[[Any, Recipe, jax.sharding.Mesh], Iterator[Program]]


def collect(build: ProgramBuilder, stage: Stage, recipe: Recipe, mesh: jax.sharding.Mesh) -> Iterator[Program]:
    """The programs that `build` yields for a stage on this mesh, one after another, since the later ones cost a
    compilation; "weights" if those for decoding do not fit."""
    try:
        yield from build(stage, recipe, mesh)
    except jax.errors.JaxRuntimeError as error:  # the unsharded copies of the weights for decoding are too large
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        yield Program("weights", functools.partial(_raise, error), {}, 0.0, 1.0)


def _raise(error: Exception) -> jax.stages.Lowered:
    raise error


def generation(stage: Generate, recipe: Recipe, mesh: jax.sharding.Mesh) -> Iterator[Program]:
    """The programs of a stage that generates responses for later stages."""
    mesh = sharding.decode_mesh_of(stage.name, mesh, recipe.decode_mesh)
    source = abstract_model(shapes.config_of(stage.init, recipe), stage.compute, mesh)
    slots, responses = min(stage.sampling.slots, stage.responses_per_step), stage.responses_per_step
    yield from _on_mesh(mesh, decoding(
        source, mesh, slots, shapes.max_length(stage), responses, stage.sampling.max_new_tokens, {}
    ))  # fmt: skip


def _on_mesh(mesh: jax.sharding.Mesh, programs: Iterator[Program]) -> Iterator[Program]:
    """The programs, traced on `mesh` instead of the mesh that is set when they are lowered."""

    def lower(trace: Callable[[], jax.stages.Lowered]) -> jax.stages.Lowered:
        with jax.set_mesh(mesh):
            return trace()

    for program in programs:
        yield dataclasses.replace(program, lower=functools.partial(lower, program.lower))


def abstract_model(
    config: DecoderConfig, compute: Compute, mesh: jax.sharding.Mesh, dropout: float = 0.0
) -> ModelSource:
    """A model without parameters, for the devices of the pod instead of those of this machine."""
    compute = sharding.with_supported_attention(compute, mesh)
    if mesh.devices.flat[0].platform == "gpu":  # cuDNN attention needs a device; the blocked one does not
        compute = dataclasses.replace(compute, platform="gpu", attention="blocked")
    else:
        compute = dataclasses.replace(compute, platform="tpu")
    return shapes.model(config, compute, sharding.placement_of(mesh), dropout)


def _placed_params(source: ModelSource, mesh: jax.sharding.Mesh) -> PyTree:
    """The abstract parameters of a frozen model: kernels in the compute dtype, with shardings."""
    cast = functools.partial(cast_kernels, dtype=source.decoder.compute.dtype)
    return sharding.with_shardings(jax.eval_shape(cast, source.decoder.abstract_params()), source.layout(mesh))


def _flops(config: DecoderConfig, length: int, rows: float, mesh: jax.sharding.Mesh, passes: int) -> float:
    """Model FLOPs on one device for `rows` sequences of `length` tokens."""
    return passes * model_flops_per_token(config, length) * length * rows / mesh.size


def training(stage: Train, recipe: Recipe, mesh: jax.sharding.Mesh) -> Iterator[Program]:
    """The programs of a stage that trains on a packed data cache."""
    sharding.check_rows(stage.batch, stage.accumulate, mesh)
    sharding.check_length(stage.data.sequence_length, mesh)
    source = abstract_model(shapes.stage_config(stage, recipe), stage.compute, mesh, stage.dropout)
    sharding.check_heads(source.config, mesh)
    start = TrainStateInit(
        stage, source, make_optimizer(stage.optimizer, UNKNOWN_STEPS, stage.batch * stage.data.sequence_length), mesh
    )
    state = sharding.with_shardings(start.abstract(), start.layout)
    frozen: dict[str, PyTree] = {}
    base = sharding.with_shardings(source.decoder.abstract_params(), start.base_layout)
    if stage.lora is not None:
        frozen["base"] = base
    cached = stage.reference_source == "cached"
    if stage.reference_source == "model":
        frozen["reference"] = frozen.get("base", base)
    rows = shapes.batch(stage.data, stage.batch, reference=cached)
    placed = sharding.batch_with_shardings(rows, mesh)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    objective = start.adapted(stage.objective(source.decoder, training=True), training=True)
    options = compiler.options(mesh, stage.compute)
    step: Any = make_train_step(
        objective, start.optimizer, accumulate=stage.accumulate,
        shardings=(start.layout, sharding.batch_sharding(mesh), replicated), options=options,
    )  # fmt: skip
    length = stage.data.sequence_length
    seen = 3 * shapes.picture_flops(source.config, stage.data) * stage.batch / mesh.size
    yield Program(
        "train", lambda: step.lower(state, placed, frozen), {},
        _flops(source.config, length, stage.batch, mesh, 3) + seen, 1.0, options,
    )  # fmt: skip
    if cached:
        score = reference_logprobs.score_program(source.decoder, mesh)
        micro = sharding.batch_with_shardings(shapes.batch(stage.data, stage.batch // stage.accumulate), mesh)
        yield Program(
            "reference", lambda: score.lower(base, micro), {},
            _flops(source.config, length, stage.batch / stage.accumulate, mesh, 1), 0.0, options,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Roles:
    """The models of an RL stage. `placed`: the abstract arrays that each keeps on the devices, by role. The reference,
    and the policy while it generates, are the policy's parameters in the compute dtype."""

    policy: TrainStateInit
    value: TrainStateInit | None
    reward: ModelSource | None
    judge: ModelSource | None
    placed: dict[str, PyTree]

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes on a device by role."""
        return {role: bytes_of(tree) for role, tree in self.placed.items() if jax.tree.leaves(tree)}

    def sizes_except(self, *arguments: str) -> dict[str, int]:
        """Bytes by role of all but these roles, which are arguments of a program."""
        return {role: size for role, size in self.sizes.items() if role not in arguments}


def _roles(stage: RL, recipe: Recipe, mesh: jax.sharding.Mesh) -> _Roles:
    def model(config: DecoderConfig) -> ModelSource:
        return abstract_model(config, stage.compute, mesh)

    source = model(shapes.stage_config(stage, recipe))
    sharding.check_heads(source.config, mesh)
    policy = TrainStateInit(stage, source, make_optimizer(stage.optimizer, UNKNOWN_STEPS), mesh)
    value = reward = judge = None
    placed = {"policy": sharding.with_shardings(policy.abstract(), policy.layout)}
    if stage.value_init is not None:
        config = shapes.config_of(stage.value_init, recipe).replace(scalar_head=True)
        optimizer = make_optimizer(stage.optimizers.get("value_optimizer", stage.optimizer), UNKNOWN_STEPS)
        value = TrainStateInit(dataclasses.replace(stage, lora=None), model(config), optimizer, mesh)
        placed["value"] = sharding.with_shardings(value.abstract(), value.layout)
    if stage.lora is not None:
        placed["frozen"] = {"base": sharding.with_shardings(source.decoder.abstract_params(), policy.base_layout)}
    placed["reference"] = _placed_params(source, mesh)
    if stage.asynchronous:
        placed["stale policies"] = [placed["reference"]] * stage.asynchronous
    if stage.reward.model is not None:
        reward = model(shapes.config_of(stage.reward.model, recipe).replace(scalar_head=True))
        placed["reward model"] = _placed_params(reward, mesh)
    if stage.reward.judge is not None and stage.reward.judge.loaded is not None:
        judge = model(shapes.config_of(stage.reward.judge.loaded, recipe))
        placed["judge"] = _placed_params(judge, mesh)
    return _Roles(policy, value, reward, judge, placed)


def reinforcement(stage: RL, recipe: Recipe, mesh: jax.sharding.Mesh) -> Iterator[Program]:
    """The programs of a stage that trains on rollouts."""
    sharding.check_rows(stage.update_rows, stage.accumulate, mesh)
    sharding.check_length(rollout.LEAST_WIDTH, mesh)
    decode_mesh = sharding.decode_mesh_of(stage.name, mesh, recipe.decode_mesh)
    roles = _roles(stage, recipe, mesh)
    programs = RLPrograms(stage, mesh, roles.policy, roles.value)
    yield from _updates(stage, mesh, roles, programs)
    yield from _scoring(stage, mesh, roles, programs)
    responses, source = stage.batch * stage.samples, roles.policy.source
    slots, new = min(stage.sampling.slots, responses), stage.sampling.max_new_tokens
    programs_of_policy = decoding(
        source, decode_mesh, slots, shapes.max_length(stage), responses, new, roles.sizes
    )  # fmt: skip
    yield from _on_mesh(decode_mesh, programs_of_policy)
    spec, judge = stage.reward.judge, roles.judge
    if spec is not None and judge is not None:  # one judgement per response, of up to the judge's whole context
        slots, new = min(spec.sampling.slots, responses), spec.sampling.max_new_tokens
        programs_of_judge = decoding(judge, decode_mesh, slots, judge.config.context, responses, new, roles.sizes)
        for program in _on_mesh(decode_mesh, programs_of_judge):
            yield dataclasses.replace(program, name=f"judge's {program.name}")


def _updates(stage: RL, mesh: jax.sharding.Mesh, roles: _Roles, programs: RLPrograms) -> Iterator[Program]:
    """The updates of the policy and, if there is one, of the value model."""
    width, frozen = rollout.bucket(shapes.max_length(stage)), roles.placed.get("frozen", {})
    rows = advantages.make_batch_builder(stage, mesh, roles.policy.model.config).abstract(width)
    for name, start in (("policy", roles.policy), ("value", roles.value)):
        if start is not None:
            yield Program(
                name, functools.partial(programs.update, name, roles.placed[name], frozen, rows),
                roles.sizes_except(name, *(("frozen",) if name == "policy" else ())),
                _flops(start.source.config, width, stage.update_rows, mesh, 3), stage.updates, programs.options,
            )  # fmt: skip


def _scoring(stage: RL, mesh: jax.sharding.Mesh, roles: _Roles, programs: RLPrograms) -> Iterator[Program]:
    """The forward passes over the responses of a rollout, `score_rows` at a time."""
    width, rows = rollout.bucket(shapes.max_length(stage)), stage.score_rows
    chunks, options = stage.batch * stage.samples / rows, programs.options

    def batch(columns: Iterable[str]) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct((rows, width), jnp.int32) for name in columns}

    def flops(model: ModelSource) -> float:
        return _flops(model.config, width, rows, mesh, 1)

    seen = stage.data
    pictures = {} if seen.vision is None else objectives_base.image_shapes(
        seen.vision, rows, seen.prompt_crops, seen.sequence_length
    )  # fmt: skip
    forward = sharding.batch_with_shardings({**batch(objectives_base.FORWARD), **pictures}, mesh)
    scored = roles.placed["reference"]
    # The policy's rollout parameters and the reference have one dtype, so one program scores both.
    yield Program(
        "score", lambda: programs.token_scores.lower(scored, forward), roles.sizes_except("reference"),
        flops(roles.policy.source), 2 * chunks, options,
    )  # fmt: skip
    if roles.value is not None:
        yield Program(
            "values", lambda: programs.values.lower(roles.placed["value"].params, forward), roles.sizes_except("value"),
            flops(roles.value.source), chunks, options,
        )  # fmt: skip
    if roles.reward is not None:
        columns = {**batch(["tokens"]), "lengths": jax.ShapeDtypeStruct((rows,), jnp.int32), **pictures}
        judged: dict[str, Any] = sharding.batch_with_shardings(columns, mesh)
        score = compiler.scorer(functools.partial(score_responses, roles.reward.decoder), mesh, stage.compute)
        yield Program(
            "reward", lambda: score.lower(
                roles.placed["reward model"], judged["tokens"], judged["lengths"], images_of(judged)
            ),
            roles.sizes_except("reward model"), flops(roles.reward), chunks, options,
        )  # fmt: skip


def evaluation(stage: Evaluate, recipe: Recipe, mesh: jax.sharding.Mesh) -> Iterator[Program]:
    """The programs of the first entry's model on the task with the longest sequences; those of others are similar."""
    mesh = sharding.decode_mesh_of(stage.name, mesh, recipe.decode_mesh)
    task = max(stage.tasks, key=lambda task: task.data.sequence_length + task.sampling.max_new_tokens)
    source = abstract_model(shapes.config_of(stage.entries[0].stages[0], recipe), stage.compute, mesh)
    longest = task.data.sequence_length + task.sampling.max_new_tokens
    responses = task.sampling.slots
    yield from _on_mesh(mesh, decoding(
        source, mesh, task.sampling.slots, longest, responses, task.sampling.max_new_tokens, {}
    ))  # fmt: skip


def decoding(
    source: ModelSource,
    mesh: jax.sharding.Mesh,
    slots: int,
    longest: int,
    responses: int,
    new: int,
    sizes: dict[str, int],
) -> Iterator[Program]:
    """The programs of the decode engine: a prefill of one bucket of prompts, and a block of decode steps.

    `longest` counts the tokens of prompt and response, `new` those of the response, `responses` those generated in one
    step of the stage; `sizes` are the bytes of other resident arrays by role.
    """
    engine = Engine(source.decoder, slots=slots, mesh=mesh if mesh.size > 1 else None, max_length=longest)
    weights = _weights(engine, _placed_params(source, mesh), mesh)
    columns = engine.bucket(longest)
    cache = _cache(engine, engine.slots, columns)
    prompt = engine.bucket(max(1, longest - new))
    rows = max(engine.split, min(engine.slots, 65536 // prompt) // engine.split * engine.split)
    replicated = None if mesh.size == 1 else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def abstract(shape: tuple[int, ...] = (), dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated)

    yield Program(
        "prefill", lambda: engine._prefill.lower(weights, abstract((rows, prompt)), abstract((rows,))),
        {**sizes, "cache": bytes_of(cache)}, _flops(source.config, prompt, rows, mesh, 1), responses / rows,
    )  # fmt: skip
    state = Rows(*(abstract((engine.slots,), jnp.bool_ if name == "done" else jnp.int32) for name in Rows._fields))
    settings = Settings(abstract(dtype=jnp.float32), abstract(), abstract(dtype=jnp.float32))
    arguments = (
        Mode(False, False, False, True), weights, cache, state, abstract(), abstract(), abstract(), abstract((1,)),
        abstract(dtype=jnp.uint32), settings,
    )  # fmt: skip
    steps = min(engine.block, new)
    per_step = model_flops_per_token(source.config, columns) * engine.slots / mesh.size
    # Of the embedding table, a step reads only the rows of the last tokens.
    read = bytes_of({name: leaf for name, leaf in weights.items() if name != "embed"}) + bytes_of(cache)
    yield Program(
        "decode", lambda: engine._decode.lower(*arguments), sizes, per_step * steps,
        responses / engine.slots * new / steps, trip_count=steps, min_bytes=read * steps,
    )  # fmt: skip


def _weights(engine: Engine, params: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """The abstract weights as the engine keeps them: replicated over the batch axes, sharded over `tp`."""
    weights = jax.eval_shape(engine._prepare, params)
    if mesh.size == 1:
        device = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), weights)
    key = (engine.model.config, engine.model.compute, mesh, engine.unroll)
    if key not in _LAYOUTS:
        with jax.set_mesh(mesh):
            _LAYOUTS[key] = engine._prepare.lower(params).compile().output_shardings
    return sharding.with_shardings(weights, _LAYOUTS[key])


def _cache(engine: Engine, rows: int, columns: int) -> PyTree:
    config = engine.model.config
    shape = (config.layers, rows, config.kv_heads, columns, config.head_dim)
    layout = engine.sharding(layer_axis=True)
    leaf = jax.ShapeDtypeStruct(shape, np.dtype(engine.model.compute.dtype), sharding=layout)
    return leaf, leaf
