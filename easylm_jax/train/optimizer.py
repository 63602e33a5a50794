"""An optimiser: an algorithm of optax between a clip before it and rate and decay behind it, inside a guard.

    gradients → clip → algorithm (`algorithms.py`) → p·(1 − lr·decay) − lr·direction → guard (`guard.py`)

The learning rate is a function of the trainer's step, which skipped updates advance too. Groups of parameters may have
a rate, a decay and a clip of their own; none of these has a state, so that a checkpoint does not depend on them.

One update is one pass over the parameters: with Adam everything behind the norm is one elementwise expression for each
leaf, in float32, which XLA fuses; with the state donated it works in place. Inside, an update is the new parameter
itself and not a difference to be added, because p + (new − p) is not always new in floating point; `transform` gives
the difference, as optax has it. Sources: OLMo 2 (arXiv 2501.00656), Loshchilov and Hutter (arXiv 1711.05101).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from easylm_jax.config.optimizer import OptimizerConfig, ParameterGroup, SkipStep
from easylm_jax.train.algorithms import algorithm
from easylm_jax.train.guard import OptState, global_norm, guarded, judge
from easylm_jax.train.schedule import Schedule, parse_schedule
from models.errors import UserError
from models.trees import leaf_names, match, prune

__all__ = ["OptState", "Optimizer", "global_norm", "make_optimizer"]

Tree = Any


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Pure functions of arrays; nothing here waits for the device except `check`, which takes host numbers.

    `schedule` is the learning rate, and `own_schedules` those of the groups that have their own, by the group's name.
    """

    config: OptimizerConfig
    schedule: Schedule
    own_schedules: tuple[tuple[str, Schedule], ...] = ()

    @functools.cached_property
    def transform(self) -> optax.GradientTransformationExtraArgs:
        """The whole optimiser as optax has one: `update(grads, state, params, step=…, loss=…) → (updates, state)`.

        Updates are added to the parameters (`optax.apply_updates`), which gives what `Optimizer.update` gives to within
        a rounding; those of frozen leaves are 0. `step` and `loss` are as in `Optimizer.update`.
        """

        def update(
            grads: Tree, state: OptState, params: Tree | None = None, *, step: Any, loss: Any, **_: Any
        ) -> tuple[Tree, OptState]:
            new, state, _ = self.update(grads, loss, state, params, step)
            return jax.tree.map(lambda after, p: after - p, new, params), state

        return optax.GradientTransformationExtraArgs(self.init, update)

    @functools.cached_property
    def _guarded(self) -> optax.GradientTransformationExtraArgs:
        """From gradients of the trained parameters to the new parameters, or the old ones."""
        descent = self._descent(optax.with_extra_args_support(algorithm(self.config)))
        whole = guarded(descent, self._rule, instead=lambda _, params: params)
        return _from_host(whole) if self.config.offload else whole

    @property
    def _rule(self) -> SkipStep | None:
        return self.config.skip_step if isinstance(self.config.skip_step, SkipStep) else None

    def _descent(self, inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
        """Clip, algorithm, rate and decay, from gradients to new parameters."""

        def in_float32(tree: Tree) -> Tree:
            return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

        def update(
            grads: Tree, state: Tree, params: Tree | None = None, *, step: Any, grad_norm: jax.Array, **extra: Any
        ) -> tuple[Tree, Tree]:
            names, (leaves, treedef) = leaf_names(params), jax.tree.flatten(params)
            groups, decays = self._groups(names), self._decays(names)
            rates = self.rates(step)
            clipped = self._clipped(in_float32(grads), grad_norm, names)
            directions, state = inner.update(clipped, state, in_float32(params), **extra)
            new = []
            for name, p, direction in zip(names, leaves, jax.tree.leaves(directions), strict=True):
                lr = rates[groups[name].name] if name in groups and groups[name].lr is not None else rates[None]
                before = p.astype(jnp.float32)
                before = before * (1 - lr * decays[name]) if decays[name] else before
                new.append((before - lr * direction).astype(p.dtype))
            return jax.tree.unflatten(treedef, new), state

        return optax.GradientTransformationExtraArgs(lambda params: inner.init(in_float32(params)), update)

    def trainable(self, params: Tree) -> Tree:
        """The trained part of `params`, frozen leaves left out; `params` itself when nothing is frozen."""
        return prune(params, self._kept(leaf_names(params)))

    def init(self, params: Tree) -> OptState:
        """The state before the first update, for parameters (or their shapes, under `jax.eval_shape`)."""
        trained = self.trainable(params)
        self._groups(leaf_names(trained))  # what they name must be there before anything runs
        return self._guarded.init(trained)

    def update(
        self, grads: Tree, loss: jax.Array, state: OptState, params: Tree, step: int | jax.Array
    ) -> tuple[Tree, OptState, dict[str, jax.Array]]:
        """One update. `grads` is nested as `params` or as `trainable(params)`; `loss` is the global batch's.

        `step` counts the updates that the trainer has taken before this one (from 0), skipped ones included, and sets
        the learning rate: with a warm-up from 0 the very first update only fills the moments, as in optax and
        transformers.

        Returns the new parameters, the new state and float32 or int32 scalars to report: `lr`, `lr_<group>` of groups
        with a rate of their own, `grad_norm` (before clipping) and `param_norm` (after the update), both of the trained
        leaves, and what `guard.judge` reports. `update_norm` is there when the configuration asks.
        """
        names = leaf_names(params)
        kept = self._kept(names)
        trained = prune(params, kept)
        gradients = _align(grads, trained, names)
        grad_norm = global_norm(gradients)
        report = judge(state, self._rule, loss, grad_norm).report
        new, state = self._guarded.update(gradients, state, trained, step=step, loss=loss, grad_norm=grad_norm)
        rates = {"lr" if name is None else f"lr_{name}": rate for name, rate in self.rates(step).items()}
        report = {**report, **rates, "grad_norm": grad_norm, "param_norm": global_norm(new)}
        if self.config.update_norm:
            report["update_norm"] = global_norm(jax.tree.map(lambda a, b: a.astype(jnp.float32) - b, new, trained))
        changed = dict(zip(leaf_names(new), jax.tree.leaves(new), strict=True))
        leaves, treedef = jax.tree.flatten(params)
        leaves = [changed.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
        return jax.tree.unflatten(treedef, leaves), state, report

    def rates(self, step: int | jax.Array) -> dict[str | None, jax.Array]:
        """The learning rate (under None), and those of the groups that have their own."""
        return {None: self.schedule(step), **{name: schedule(step) for name, schedule in self.own_schedules}}

    def _kept(self, names: list[str]) -> set[str]:
        """The names of what is trained."""
        return match(self.config.trainable, names, "optimizer.trainable")

    def _groups(self, names: Iterable[str]) -> dict[str, ParameterGroup]:
        """The group of each trained leaf that belongs to one."""
        found: dict[str, ParameterGroup] = {}
        for group in self.config.groups:
            for name in sorted(match(group.patterns, list(names), f"optimizer group {group.name!r}")):
                if name in found:
                    raise UserError(
                        f"optimizer: {name} belongs to the groups {found[name].name!r} and {group.name!r}; narrow the "
                        "patterns of one of them"
                    )
                found[name] = group
        return found

    def _clipped(self, grads: Tree, grad_norm: jax.Array, names: list[str]) -> Tree:
        """Gradients (float32) whose norm is within `clip`: of all together, but for groups with a clip of their own."""
        groups, (leaves, treedef) = self._groups(names), jax.tree.flatten(grads)
        own = {name: group for name, group in groups.items() if group.clip != "shared"}
        together: dict[str | None, list[int]] = {}
        for at, name in enumerate(names):
            together.setdefault(own[name].name if name in own else None, []).append(at)
        bounds: dict[str | None, Any] = {None: self.config.clip, **{group.name: group.clip for group in own.values()}}
        for key, members in together.items():
            bound = bounds[key]
            if bound is not None:
                norm = global_norm([leaves[at] for at in members]) if own else grad_norm
                for at in members:
                    leaves[at] = leaves[at] * jnp.minimum(1.0, bound / (norm + 1e-6))
        return jax.tree.unflatten(treedef, leaves)

    def _decays(self, names: Iterable[str]) -> dict[str, float]:
        """The weight decay of each trained leaf; 0 for those that are spared."""
        groups = self._groups(names)

        def decay(name: str) -> float:
            own = groups[name].weight_decay if name in groups else None
            if own is not None:
                return own
            parts = name.split(".")
            embedding = "embed" in parts and not self.config.decay_embeddings
            small = parts[-1] in ("scale", "bias") and not self.config.decay_norms_and_biases
            return 0.0 if embedding or small else self.config.weight_decay

        return {name: decay(name) for name in names}

    def describe(self, params: Tree) -> str:
        """What happens to each parameter, one line a leaf, by group and decay; frozen ones last."""
        names, leaves = leaf_names(params), jax.tree.leaves(params)
        kept = self._kept(names)
        groups, decays = self._groups(kept), self._decays(kept)
        listed: dict[str, list[tuple[str, Any]]] = {f"decayed by {self.config.weight_decay:g}": [], "not decayed": []}
        frozen = []
        for name, leaf in zip(names, leaves, strict=True):
            if name not in kept:
                frozen.append((name, leaf))
                continue
            title = f"decayed by {decays[name]:g}" if decays[name] else "not decayed"
            if name in groups:
                title = f"group {groups[name].name}{_own(groups[name])}, {title}"
            listed.setdefault(title, []).append((name, leaf))
        lines = []
        for title, members in (*listed.items(), ("frozen", frozen)):
            if members:
                size = sum(math.prod(leaf.shape) for _, leaf in members)
                lines.append(f"{title}: {len(members)} leaves, {size:,} parameters")
                lines += [f"  {name} [{', '.join(map(str, leaf.shape))}]" for name, leaf in members]
        return "\n".join(lines)

    def check(self, metrics: Mapping[str, Any], step: int) -> None:
        """Raises `UserError` once `abort_after` updates in a row were skipped.

        `metrics` are a step's, on the host: `loss`, and `skipped_in_row` and `grad_norm` as `update` reports them.
        """
        in_row = int(metrics["skipped_in_row"])
        if self.config.abort_after is not None and in_row >= self.config.abort_after:
            loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
            raise UserError(
                f"step {step}: the last {in_row} updates were all skipped (loss {loss:g}, gradient norm {norm:g}); go "
                "back to an earlier checkpoint with a lower learning rate or other data, or raise optimizer.abort_after"
            )


def make_optimizer(config: OptimizerConfig, total_steps: int, tokens_per_step: int | None = None) -> Optimizer:
    """The optimiser of a run of `total_steps` updates, each over `tokens_per_step` tokens (the whole batch).

    Raises:
        UserError: an unknown algorithm or option, or a schedule that does not fit the run.
    """
    algorithm(config)

    def schedule(text: str | float) -> Schedule:
        return parse_schedule(text, total_steps=total_steps, tokens_per_step=tokens_per_step)

    own = tuple((group.name, schedule(group.lr)) for group in config.groups if group.lr is not None)
    return Optimizer(config, schedule(config.lr), own)


def _own(group: ParameterGroup) -> str:
    """A group's rate and clip in words, where it has its own."""
    rate = "" if group.lr is None else f", lr {group.lr}"
    return rate if group.clip == "shared" else f"{rate}, clip {'none' if group.clip is None else f'{group.clip:g}'}"


def _align(grads: Tree, trained: Tree, names: list[str]) -> Tree:
    """The gradients of the trained leaves, nested as they are, from a tree that holds all leaves or these alone."""
    by_name = dict(zip(leaf_names(grads), jax.tree.leaves(grads), strict=True))
    kept = leaf_names(trained)
    if set(by_name) not in (set(names), set(kept)):
        odd = sorted(set(by_name) ^ set(names))
        raise ValueError(f"gradients and parameters are not the same tree; they differ in {', '.join(odd)}")
    return jax.tree.unflatten(jax.tree.structure(trained), [by_name[name] for name in kept])


def _from_host(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A transformation that brings what lies in the hosts' memory to the devices, and puts it back there."""

    def update(updates: Tree, state: Tree, params: Tree | None = None, **extra: Any) -> tuple[Tree, Tree]:
        places = [jax.typeof(leaf).memory_space for leaf in jax.tree.leaves(state)]
        near = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.memory.Space.Device), state)
        updates, state = inner.update(updates, near, params, **extra)
        leaves, treedef = jax.tree.flatten(state)
        back = [jax.device_put(leaf, place) for leaf, place in zip(leaves, places, strict=True)]
        return updates, jax.tree.unflatten(treedef, back)

    return optax.GradientTransformationExtraArgs(inner.init, update)
