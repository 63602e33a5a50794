"""The programs of a stage, lowered from shapes for the devices of a pod, and what must be resident beside each.

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
MANY = 10**6  # steps, for schedules whose length is not known


@dataclasses.dataclass(frozen=True)
class PlannedProgram:
    """One program. `lower()` traces it; `resident` bytes on a device by what is there beside its own arguments;
    `flops` of the model on one device for one run (forward 1, training 3 passes); `runs` in one step of the stage;
    `options` that its compiler is told, which are no part of its text; `rounds` of a loop whose length is an argument;
    `read` bytes on one device that a run cannot do without reading (0 where arithmetic is the limit)."""

    name: str
    lower: Callable[[], jax.stages.Lowered]
    resident: dict[str, int]
    flops: float
    runs: float
    options: compiler.Options | None = None
    rounds: int = 1
    read: float = 0.0


Programs = Callable[[Any, Recipe, jax.sharding.Mesh], Iterator[PlannedProgram]]  # of a stage, on the recipe's mesh


def collect(programs: Programs, stage: Stage, recipe: Recipe, mesh: jax.sharding.Mesh) -> list[PlannedProgram]:
    """The programs of a stage on this mesh, by the function that its kind has for them."""
    found = []
    try:
        for planned in programs(stage, recipe, mesh):
            found.append(planned)
    except jax.errors.JaxRuntimeError as error:  # whole copies of the weights, which decoding wants, are too large
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found.append(PlannedProgram("weights", functools.partial(_raise, error), {}, 0.0, 1.0))
    return found


def _raise(error: Exception) -> jax.stages.Lowered:
    raise error


def generation(stage: Generate, recipe: Recipe, mesh: jax.sharding.Mesh) -> Iterator[PlannedProgram]:
    """The programs of a stage whose model generates responses for later stages."""
    mesh = sharding.decode_mesh_of(stage.name, mesh, recipe.decode_mesh)
    source = _model(shapes.config_of(stage.init, recipe), stage.compute, mesh)
    slots, responses = min(stage.sampling.slots, stage.responses_per_step), stage.responses_per_step
    yield from _on(mesh, _writing(
        source, mesh, slots, shapes.longest(stage), responses, stage.sampling.max_new_tokens, {}
    ))  # fmt: skip


def _on(mesh: jax.sharding.Mesh, programs: Iterator[PlannedProgram]) -> Iterator[PlannedProgram]:
    """Programs that are traced on a mesh of their own."""

    def lower(traced: Callable[[], jax.stages.Lowered]) -> jax.stages.Lowered:
        with jax.set_mesh(mesh):
            return traced()

    for planned in programs:
        yield dataclasses.replace(planned, lower=functools.partial(lower, planned.lower))


def _model(config: DecoderConfig, compute: Compute, mesh: jax.sharding.Mesh, dropout: float = 0.0) -> ModelSource:
    """A model of which there are shapes alone, on the pod's devices in place of this machine's."""
    compute = sharding.with_supported_attention(compute, mesh)
    if mesh.devices.flat[0].platform == "gpu":  # cuDNN's attention is chosen on a device; blocks are compiled without
        compute = dataclasses.replace(compute, platform="gpu", attention="blocked")
    else:
        compute = dataclasses.replace(compute, platform="tpu")
    return shapes.model(config, compute, sharding.placement_of(mesh), dropout)


def _placed_params(source: ModelSource, mesh: jax.sharding.Mesh) -> PyTree:
    """A frozen model's parameters: kernels in the type that is computed in."""
    cast = functools.partial(cast_kernels, dtype=source.decoder.compute.dtype)
    return sharding.with_shardings(jax.eval_shape(cast, source.decoder.abstract_params()), source.layout(mesh))


def _flops(config: DecoderConfig, length: int, rows: float, mesh: jax.sharding.Mesh, passes: int) -> float:
    """Model FLOPs on one device."""
    return passes * model_flops_per_token(config, length) * length * rows / mesh.size


def training(stage: Train, recipe: Recipe, mesh: jax.sharding.Mesh) -> Iterator[PlannedProgram]:
    """The programs of a stage that trains on a packed cache."""
    sharding.check_rows(stage.batch, stage.accumulate, mesh)
    sharding.check_length(stage.data.sequence_length, mesh)
    source = _model(shapes.stage_config(stage, recipe), stage.compute, mesh, stage.dropout)
    sharding.check_heads(source.config, mesh)
    start = TrainStateInit(
        stage, source, make_optimizer(stage.optimizer, MANY, stage.batch * stage.data.sequence_length), mesh
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
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    objective = start.adapted(stage.objective(source.decoder, training=True), training=True)
    options = compiler.options(mesh, stage.compute)
    step = make_train_step(
        objective, start.optimizer, accumulate=stage.accumulate,
        shardings=(start.layout, sharding.batch_sharding(mesh), everywhere), options=options,
    )  # fmt: skip
    length = stage.data.sequence_length
    yield PlannedProgram(
        "train", lambda: step.lower(state, placed, frozen), {},
        _flops(source.config, length, stage.batch, mesh, 3), 1.0, options,
    )  # fmt: skip
    if cached:
        score = reference_logprobs.score_program(source.decoder, mesh)
        micro = sharding.batch_with_shardings(shapes.batch(stage.data, stage.batch // stage.accumulate), mesh)
        yield PlannedProgram(
            "reference", lambda: score.lower(base, micro), {},
            _flops(source.config, length, stage.batch / stage.accumulate, mesh, 1), 0.0, options,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Roles:
    """The models of a stage of reinforcement learning, and by role the shapes of what each has on the devices. The
    reference, and the policy as it writes, have the policy's parameters in the type that is computed in."""

    policy: TrainStateInit
    value: TrainStateInit | None
    reward: ModelSource | None
    judge: ModelSource | None
    placed: dict[str, PyTree]

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes on a device by role."""
        return {role: bytes_of(tree) for role, tree in self.placed.items() if jax.tree.leaves(tree)}

    def beside(self, *own: str) -> dict[str, int]:
        """What is there beside the arguments of a program that takes these."""
        return {role: size for role, size in self.sizes.items() if role not in own}


def _roles(stage: RL, recipe: Recipe, mesh: jax.sharding.Mesh) -> _Roles:
    def model(config: DecoderConfig) -> ModelSource:
        return _model(config, stage.compute, mesh)

    source = model(shapes.stage_config(stage, recipe))
    sharding.check_heads(source.config, mesh)
    policy = TrainStateInit(stage, source, make_optimizer(stage.optimizer, MANY), mesh)
    value = reward = judge = None
    placed = {"policy": sharding.with_shardings(policy.abstract(), policy.layout)}
    if stage.value_init is not None:
        config = shapes.config_of(stage.value_init, recipe).replace(scalar_head=True)
        optimizer = make_optimizer(stage.optimizers.get("value_optimizer", stage.optimizer), MANY)
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
    if stage.reward.judge is not None:
        judge = model(shapes.config_of(stage.reward.judge.model, recipe))
        placed["judge"] = _placed_params(judge, mesh)
    return _Roles(policy, value, reward, judge, placed)


def reinforcement(stage: RL, recipe: Recipe, mesh: jax.sharding.Mesh) -> Iterator[PlannedProgram]:
    """The programs of a stage that trains on rollouts."""
    sharding.check_rows(stage.update_rows, stage.accumulate, mesh)
    sharding.check_length(rollout.LEAST_WIDTH, mesh)
    decodes = sharding.decode_mesh_of(stage.name, mesh, recipe.decode_mesh)
    roles = _roles(stage, recipe, mesh)
    programs = RLPrograms(stage, mesh, roles.policy, roles.value)
    yield from _updates(stage, mesh, roles, programs)
    yield from _scoring(stage, mesh, roles, programs)
    answers, source = stage.batch * stage.samples, roles.policy.source
    slots, new = min(stage.sampling.slots, answers), stage.sampling.max_new_tokens
    yield from _on(decodes, _writing(source, decodes, slots, shapes.longest(stage), answers, new, roles.sizes))
    asked, judge = stage.reward.judge, roles.judge
    if asked is not None and judge is not None:  # one question a response, as long as its context lets it be
        slots, new = min(asked.sampling.slots, answers), asked.sampling.max_new_tokens
        for planned in _on(decodes, _writing(judge, decodes, slots, judge.config.context, answers, new, roles.sizes)):
            yield dataclasses.replace(planned, name=f"judge's {planned.name}")


def _updates(stage: RL, mesh: jax.sharding.Mesh, roles: _Roles, programs: RLPrograms) -> Iterator[PlannedProgram]:
    """What trains the policy, and the value model where there is one."""
    width, frozen = rollout.bucket(shapes.longest(stage)), roles.placed.get("frozen", {})
    rows = advantages.make_batch_builder(stage, mesh).abstract(width)
    for name, start in (("policy", roles.policy), ("value", roles.value)):
        if start is not None:
            yield PlannedProgram(
                name, functools.partial(programs.update, name, roles.placed[name], frozen, rows),
                roles.beside(name, *(("frozen",) if name == "policy" else ())),
                _flops(start.source.config, width, stage.update_rows, mesh, 3), stage.updates, programs.options,
            )  # fmt: skip


def _scoring(stage: RL, mesh: jax.sharding.Mesh, roles: _Roles, programs: RLPrograms) -> Iterator[PlannedProgram]:
    """What goes once through the responses of a rollout, `score_rows` at a time."""
    width, rows = rollout.bucket(shapes.longest(stage)), stage.score_rows
    chunks, options = stage.batch * stage.samples / rows, programs.options

    def batch(columns: Iterable[str]) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct((rows, width), jnp.int32) for name in columns}

    def flops(model: ModelSource) -> float:
        return _flops(model.config, width, rows, mesh, 1)

    forward = sharding.batch_with_shardings(batch(objectives_base.FORWARD), mesh)
    scored = roles.placed["reference"]
    # The policy as it writes and the reference are of one type, and scored by one program.
    yield PlannedProgram(
        "score", lambda: programs.token_scores.lower(scored, forward), roles.beside("reference"),
        flops(roles.policy.source), 2 * chunks, options,
    )  # fmt: skip
    if roles.value is not None:
        yield PlannedProgram(
            "values", lambda: programs.values.lower(roles.placed["value"].params, forward), roles.beside("value"),
            flops(roles.value.source), chunks, options,
        )  # fmt: skip
    if roles.reward is not None:
        judged = {**batch(["tokens"]), "lengths": jax.ShapeDtypeStruct((rows,), jnp.int32)}
        judged = sharding.batch_with_shardings(judged, mesh)
        score = compiler.scorer(functools.partial(score_responses, roles.reward.decoder), mesh, stage.compute)
        yield PlannedProgram(
            "reward", lambda: score.lower(roles.placed["reward model"], judged["tokens"], judged["lengths"]),
            roles.beside("reward model"), flops(roles.reward), chunks, options,
        )  # fmt: skip


def evaluation(stage: Evaluate, recipe: Recipe, mesh: jax.sharding.Mesh) -> Iterator[PlannedProgram]:
    """The first entry's model on the task with the longest responses; the others are of its kind."""
    mesh = sharding.decode_mesh_of(stage.name, mesh, recipe.decode_mesh)
    task = max(stage.tasks, key=lambda task: task.data.sequence_length + task.sampling.max_new_tokens)
    source = _model(shapes.config_of(stage.entries[0].stages[0], recipe), stage.compute, mesh)
    longest = task.data.sequence_length + task.sampling.max_new_tokens
    answers = task.sampling.slots
    yield from _on(mesh, _writing(
        source, mesh, task.sampling.slots, longest, answers, task.sampling.max_new_tokens, {}
    ))  # fmt: skip


def _writing(
    source: ModelSource,
    mesh: jax.sharding.Mesh,
    slots: int,
    longest: int,
    answers: int,
    new: int,
    sizes: dict[str, int],
) -> Iterator[PlannedProgram]:
    """The engine's programs: a prefill of one bucket of prompts, and a block of steps of decoding."""
    engine = Engine(source.decoder, slots=slots, mesh=mesh if mesh.size > 1 else None, max_length=longest)
    weights = _weights(engine, _placed_params(source, mesh), mesh)
    columns = engine.bucket(longest)
    cache = _cache(engine, engine.slots, columns)
    prompt = engine.bucket(max(1, longest - new))
    rows = max(engine.split, min(engine.slots, 65536 // prompt) // engine.split * engine.split)
    everywhere = None if mesh.size == 1 else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def number(shape: tuple[int, ...] = (), dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    yield PlannedProgram(
        "prefill", lambda: engine._prefill.lower(weights, number((rows, prompt)), number((rows,))),
        {**sizes, "cache": bytes_of(cache)}, _flops(source.config, prompt, rows, mesh, 1), answers / rows,
    )  # fmt: skip
    state = Rows(*(number((engine.slots,), jnp.bool_ if name == "done" else jnp.int32) for name in Rows._fields))
    settings = Settings(number(dtype=jnp.float32), number(), number(dtype=jnp.float32))
    arguments = (
        Mode(False, False, False, True), weights, cache, state, number(), number(), number(), number((1,)),
        number(dtype=jnp.uint32), settings,
    )  # fmt: skip
    steps = min(engine.block, new)
    per_step = model_flops_per_token(source.config, columns) * engine.slots / mesh.size
    # Of the embedding only the rows of the last tokens are read.
    read = bytes_of({name: part for name, part in weights.items() if name != "embed"}) + bytes_of(cache)
    yield PlannedProgram(
        "decode", lambda: engine._decode.lower(*arguments), sizes, per_step * steps,
        answers / engine.slots * new / steps, rounds=steps, read=read * steps,
    )  # fmt: skip


def _weights(engine: Engine, params: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Shapes of the weights as the engine keeps them: whole on each group that splits the batch, split over `tp`."""
    made = jax.eval_shape(engine._prepare, params)
    if mesh.size == 1:
        place = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), made)
    with jax.set_mesh(mesh):
        places = engine._prepare.lower(params).compile().output_shardings
    return sharding.with_shardings(made, places)


def _cache(engine: Engine, rows: int, columns: int) -> PyTree:
    config = engine.model.config
    shape = (config.layers, rows, config.kv_heads, columns, config.head_dim)
    place = engine.sharding(layer_axis=True)
    one = jax.ShapeDtypeStruct(shape, np.dtype(engine.model.compute.dtype), sharding=place)
    return one, one
