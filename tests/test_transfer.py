"""Trees of arrays are copied between meshes that have no device in common, whatever the layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.runtime.transfer import Transfer

SHAPES = {
    "layers": ((3, 8, 4), jnp.bfloat16, PartitionSpec(None, "fsdp", "tp")),
    "split_layers": ((4, 4, 2), jnp.float32, PartitionSpec("fsdp", None, "tp")),
    "table": ((16, 4), jnp.float32, PartitionSpec("tp", "fsdp")),
    "norm": ((5,), jnp.float32, PartitionSpec()),
}


@pytest.mark.parametrize(
    "source, target", [("dp=2,fsdp=2", "fsdp=2,tp=2"), pytest.param("fsdp=2", "tp=2,fsdp=1", marks=pytest.mark.slow)]
)
def test_a_tree_is_the_same_on_the_other_mesh(source, target):
    devices = jax.devices()
    count = 4 if "dp" in source else 2
    meshes = make_mesh(source, devices[:count]), make_mesh(target, devices[count : 2 * count])
    layouts = [{name: NamedSharding(mesh, spec) for name, (_, _, spec) in SHAPES.items()} for mesh in meshes]
    rng = np.random.default_rng(0)
    values = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, (shape, dtype, _) in SHAPES.items()}
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in values.items()}
    transfer = Transfer(shapes, *layouts)
    for scale in (1.0, -3.0):  # the second call runs the compiled program again
        tree = {name: jax.device_put(x * scale, layouts[0][name]) for name, x in values.items()}
        moved = transfer(tree)
        for name, x in moved.items():
            assert x.sharding == layouts[1][name] and x.dtype == shapes[name].dtype
            np.testing.assert_array_equal(np.asarray(x), np.asarray(tree[name]))
