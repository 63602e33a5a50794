"""A mesh really splits arrays; rows give the same training however they are cut and packed (losses agree to 1e-6)."""

import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import models
from easylm_jax.config.optimizer import OptimizerConfig
from easylm_jax.data import packing
from easylm_jax.objectives import language_modelling
from easylm_jax.runtime import sharding
from easylm_jax.runtime.mesh import AXES, batch_split, make_mesh, parse_mesh
from easylm_jax.runtime.processes import on_tpu_host
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.step import REPLICATED_STATE, gradients, make_score_step, make_train_step, new_state
from models.config import Compute, DecoderConfig
from models.decoder import SHARDING_RULES
from models.errors import UserError
from models.trees import leaf_names

CONFIG = DecoderConfig("olmo2", layers=2, width=32, heads=8, kv_heads=4, ffn=64, vocab=320, context=64, qk_norm=True)
SHAPES = {
    "olmo2": CONFIG.replace(head_dim=8),
    "qwen2": CONFIG.replace(head_dim=8, qk_norm=False, qkv_bias=True, norm_placement="pre", tie_embeddings=True),
}
STEPS, ROWS, LENGTH = 5, 16, 64
# Less of LLVM's work halves the time to compile; the partitioned program is the same.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def devices_of(text: str) -> int:
    return math.prod(int(part.partition("=")[2]) for part in text.split(","))


def mesh_of(text: str):
    return make_mesh(text, jax.devices()[: devices_of(text)])


def documents(count: int, seed: int) -> list[np.ndarray]:
    """Token ids of documents of very different lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CONFIG.vocab, rng.integers(2, LENGTH + 1)) for _ in range(count)]


def rows_of(groups: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    """A batch with one group of documents packed into each row; about a third of the tokens carry no loss."""
    tokens, marks = np.zeros((len(groups), LENGTH), np.int32), np.zeros((len(groups), LENGTH), np.uint8)
    segments = []
    for row, group in enumerate(groups):
        start = 0
        for ids in group:
            tokens[row, start : start + len(ids)] = ids
            marks[row, start : start + len(ids)] = ids % 3 > 0
            segments.append((row, start, len(ids)))
            start += len(ids)
    row, start, length = np.array(segments, np.int64).T
    return packing.next_token_arrays(
        tokens, marks, row, start, length, sequence_length=LENGTH, document_mask=True, pad_id=0
    )


def pack(docs: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Documents in the order given, as many in a row as fit."""
    groups: list[list[np.ndarray]] = [[]]
    for ids in docs:
        if sum(map(len, groups[-1])) + len(ids) > LENGTH:
            groups.append([])
        groups[-1].append(ids)
    return groups


@functools.cache
def batches() -> list[dict[str, np.ndarray]]:
    made = [rows_of(pack(documents(40, seed))[:ROWS]) for seed in range(STEPS)]
    assert all(batch["tokens"].shape == (ROWS, LENGTH) for batch in made)
    return made


class Program:
    """A train step on a mesh, put together as the trainer does it."""

    def __init__(self, text: str, shape: str = "olmo2", remat: str = "none", **optimizer):
        self.mesh = mesh_of(text)
        self.model = models.build(SHAPES[shape], sharding.with_mesh_axes(Compute(remat=remat), self.mesh))
        self.optimizer = make_optimizer(OptimizerConfig("1e-3 cosine to 10% warmup 2 steps", **optimizer), STEPS)
        abstract = jax.eval_shape(self.fresh, self.model.abstract_params())
        self.layout = sharding.state_shardings(abstract, self.model.sharding_rules, self.mesh, REPLICATED_STATE)
        if self.optimizer.config.offload:
            self.layout = sharding.with_moments_on_host(self.layout)
        self.batch_layout = sharding.batch_sharding(self.mesh)
        everywhere = jax.sharding.NamedSharding(self.mesh, P())
        objective = language_modelling(self.model, z_loss=1e-4)
        shardings = (self.layout, self.batch_layout, everywhere)
        self.step = make_train_step(objective, self.optimizer, shardings=shardings)
        self.score = make_score_step(objective, shardings=(self.layout.params, self.batch_layout, everywhere))

    def fresh(self, params):
        return new_state(params, self.optimizer.init(params), 0)

    def state(self):
        """The first state, of the same values on every mesh."""
        params = first_parameters(self.model.config)
        return jax.device_put(jax.device_get(self.fresh(params)), self.layout)

    @functools.cached_property
    def compiled(self):
        return self.step.lower(self.state(), self.place(batches()[0]), {}).compile(QUICK)

    def place(self, batch: dict[str, np.ndarray]):
        rows = len(batch["tokens"])
        local = sharding.local_rows(rows, self.mesh)
        np.testing.assert_array_equal(local, np.arange(rows))
        return sharding.place_batch(batch, rows, self.mesh)

    def train(self) -> tuple[list[float], list[float], object]:
        """Losses, gradient norms and the last state."""
        losses, norms = [], []
        with jax.set_mesh(self.mesh):
            state = self.state()
            step = self.compiled
            for batch in batches():
                state, metrics = step(state, self.place(batch), {})
                losses.append(float(metrics["loss"]))
                norms.append(float(metrics["grad_norm"]))
        return losses, norms, state


program = functools.cache(Program)


@functools.cache
def first_parameters(config: DecoderConfig):
    return jax.device_get(jax.jit(models.build(config).init)(jax.random.key(0)))


@functools.cache
def one_device(shape: str = "olmo2", **optimizer):
    return program("dp=1", shape, **optimizer).train()


def relative(a, b) -> float:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b)) / np.abs(np.asarray(b))))


def assert_tree_close(a, b, tolerance: float) -> None:
    """Each leaf within `tolerance` of the other's largest element."""
    for name, x, y in zip(leaf_names(a), jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.abs(x - y).max() <= tolerance * max(np.abs(y).max(), 1e-30), name


@pytest.mark.parametrize("layout", ("fsdp=4,tp=2", "slice=2,dp=2,fsdp=2", "fsdp=2,cp=2,tp=2"))
def test_every_leaf_is_split_as_its_rule_says(layout):
    it = program(layout)
    size, state = it.mesh.shape, it.state()
    params, mu = state.params, state.opt.mu
    d, f, vocab, inner, kv_inner = 32, 64, 320, 64, 32
    fsdp, tp = size["fsdp"] * size["cp"], size["tp"]
    expected = {
        "embed.table": (vocab // tp, d // fsdp),
        "layers.attn.q.kernel": (2, d // fsdp, inner // tp),
        "layers.attn.k.kernel": (2, d // fsdp, kv_inner // tp),
        "layers.attn.v.kernel": (2, d // fsdp, kv_inner // tp),
        "layers.attn.o.kernel": (2, inner // tp, d // fsdp),
        "layers.attn.q_norm.scale": (2, inner // tp),
        "layers.attn.k_norm.scale": (2, kv_inner // tp),
        "layers.mlp.gate.kernel": (2, d // fsdp, f // tp),
        "layers.mlp.up.kernel": (2, d // fsdp, f // tp),
        "layers.mlp.down.kernel": (2, f // tp, d // fsdp),
        "layers.post_attn_norm.scale": (2, d),
        "layers.post_ffn_norm.scale": (2, d),
        "final_norm.scale": (d,),
        "head.kernel": (d // fsdp, vocab // tp),
    }
    for tree in (params, mu, state.opt.nu):
        shards = {
            name: leaf.addressable_shards for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
        }
        assert {name: shard[0].data.shape for name, shard in shards.items()} == expected
        assert all(len(shard) == 8 for shard in shards.values())
    batch = it.place(batches()[0])
    parts = batch_split(it.mesh)
    for name, array in batch.items():
        shards = array.addressable_shards
        assert {shard.data.shape for shard in shards} == {(ROWS // parts, LENGTH)}, name
        assert len({shard.index[0].start for shard in shards}) == parts  # different rows, not copies
    with jax.set_mesh(it.mesh):
        after, _ = it.compiled(state, batch, {})
    for leaf, place in zip(jax.tree.leaves(after), jax.tree.leaves(it.layout), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_a_leaf_without_a_rule_or_with_two_is_refused():
    mesh, tree = mesh_of("fsdp=8"), {"new": {"kernel": jax.ShapeDtypeStruct((32, 32), "float32")}}
    with pytest.raises(UserError, match=r"new\.kernel matches 0 rules"):
        sharding.parameter_shardings(tree, SHARDING_RULES, mesh)
    twice = ((r"new\.kernel", ("width", None)), (r".*kernel", (None, None)))
    with pytest.raises(UserError, match=r"new\.kernel matches 2 rules"):
        sharding.parameter_shardings(tree, twice, mesh)


def loss_and_gradient(batch: dict[str, np.ndarray], accumulate: int = 1):
    """Gradient, loss and metrics of first parameters, not yet updated."""
    model = models.build(SHAPES["olmo2"])
    run = functools.partial(gradients, language_modelling(model, z_loss=1e-4), frozen={}, accumulate=accumulate)
    inputs = first_parameters(model.config), batch, jax.random.key(3)
    return jax.jit(run).lower(*inputs).compile(QUICK)(*inputs)


@functools.cache
def uneven_batch():
    """Eight rows; counted modulo 4 they hold no trained token at all, a few, more, and as many as fit."""
    docs = [ids for ids in documents(200, 11) if 8 <= len(ids) <= 16 and (ids[1:] % 3 > 0).any()]
    groups = [[docs.pop() for _ in range(row % 4)] for row in range(8)]
    groups[0], groups[4] = [np.zeros(3, np.int64)], [np.zeros(2, np.int64)]  # multiples of 3 carry no loss
    return rows_of(groups)


@functools.cache
def uneven_whole():
    return loss_and_gradient(uneven_batch())


@pytest.mark.parametrize("accumulate", (2, 4))
def test_accumulation_gives_the_loss_and_gradient_of_the_whole_batch(accumulate, record_property):
    batch = uneven_batch()
    counts = [batch["loss_weights"][i::4].sum() for i in range(4)]
    assert counts[0] == 0 < 1.5 * counts[1] < counts[3]
    expected, expected_loss, expected_metrics = uneven_whole()
    grads, loss, metrics = loss_and_gradient(batch, accumulate)
    record_property("relative difference of the loss", relative(loss, expected_loss))
    assert metrics["trained_tokens"] == expected_metrics["trained_tokens"] == sum(counts)
    assert relative(loss, expected_loss) <= 1e-6
    assert_tree_close(grads, expected, 1e-6)


def test_packed_rows_give_the_loss_and_gradient_of_one_document_a_row(record_property):
    docs = documents(12, 5)
    packed, alone = rows_of(pack(docs)), rows_of([[ids] for ids in docs])
    assert len(packed["tokens"]) < len(alone["tokens"])
    expected, expected_loss, expected_metrics = loss_and_gradient(alone)
    grads, loss, metrics = loss_and_gradient(packed)
    record_property("relative difference of the loss", relative(loss, expected_loss))
    assert metrics["trained_tokens"] == expected_metrics["trained_tokens"] > 0
    assert relative(loss, expected_loss) <= 1e-6
    assert_tree_close(grads, expected, 1e-6)


def test_held_out_rows_are_summed_before_they_are_divided_on_a_mesh():
    """The last batch of an evaluation is filled up with empty rows, which must weigh nothing on any mesh."""
    batch = {name: array.copy() for name, array in batches()[0].items()}
    for array in batch.values():
        array[5:] = 0
    sums = []
    for text in ("dp=1", "fsdp=4,tp=2"):
        it = program(text)
        with jax.set_mesh(it.mesh):
            sums.append(jax.device_get(it.score(it.state().params, it.place(batch), {})))
    assert sums[0]["loss"][1] == sums[1]["loss"][1] == batch["loss_weights"][:5].sum()
    assert relative(sums[1]["loss"][0], sums[0]["loss"][0]) <= 1e-6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fsdp=3", "needs 3 devices, but there are 8"),
        ("dp=2,fsdp=2", "needs 4 devices, but there are 8"),
        ("dp=3,fsdp=-1", "needs a multiple of 3 devices, but there are 8"),
        ("fsdp=-1,tp=-1", "only one axis may be -1"),
        ("fspd=-1", "unknown axis 'fspd'; did you mean 'fsdp'"),
        ("width=8", "unknown axis 'width'; the axes are slice, dp, fsdp, cp, ep, tp"),
        ("fsdp=0", "must be a positive whole number or -1, not '0'"),
        ("fsdp", "must be a positive whole number or -1, not ''"),
        ("fsdp=eight", "not 'eight'"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_told_in_one_line(text, says):
    with pytest.raises(UserError) as told:
        parse_mesh(text, 8)
    assert says in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("platforms", "environment", "libtpu", "asked"),
    [
        (None, {}, True, True),  # a machine of Google Cloud with chips
        (None, {"TPU_SKIP_MDS_QUERY": "1"}, True, False),  # JAX found no chips
        (None, {}, False, False),
        ("cpu", {"TPU_WORKER_HOSTNAMES": "a,b"}, True, False),
        ("tpu,cpu", {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_SKIP_MDS_QUERY": "true"}, True, True),  # Kubernetes
        (None, {"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_SKIP_MDS_QUERY": "true"}, True, True),
        (None, {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "true"}, True, False),
    ],
)
def test_other_hosts_are_looked_for_where_there_are_tpu_chips(platforms, environment, libtpu, asked):
    assert on_tpu_host(platforms, environment, libtpu) is asked


def test_one_free_axis_takes_what_is_left():
    assert parse_mesh("dp=2,fsdp=-1,tp=2", 8) == {"slice": 1, "dp": 2, "fsdp": 2, "cp": 1, "ep": 1, "tp": 2}
    assert parse_mesh("", 1) == dict.fromkeys(AXES, 1)


def test_rows_heads_or_widths_that_a_mesh_does_not_divide_are_told_in_one_line():
    mesh = mesh_of("fsdp=4,tp=2")
    with pytest.raises(UserError, match="a batch of 6 rows cannot be split over 4 shards .* make it a multiple of 4"):
        sharding.check_rows(6, 1, mesh)
    with pytest.raises(UserError, match="8 rows .* in 3 micro-batches; make it a multiple of 12"):
        sharding.check_rows(8, 3, mesh)
    odd = models.build(CONFIG.replace(width=36, head_dim=8, heads=4, ffn=50))
    with pytest.raises(UserError, match=r"layers\.mlp\.down\.kernel of shape .* cannot be split 4 ways along tp"):
        sharding.parameter_shardings(odd.abstract_params(), odd.sharding_rules, mesh_of("tp=4"))
    with pytest.raises(UserError, match="tp=8 cannot split 4 key-value heads; choose a size of tp that divides 4"):
        sharding.check_heads(CONFIG, mesh_of("tp=8"))
    sharding.check_heads(CONFIG, mesh_of("tp=4"))
