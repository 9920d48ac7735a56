"""Meshes: the same numbers on one device, on eight, and in two processes; refusals."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import mesh_worker
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec
from jobs import two_processes

from reasoning.models.axes import constrain, partition
from reasoning.models.config import ModelConfig
from reasoning.models.transformer import init_params
from reasoning.runtime.checkpoints import load_tree, save_tree
from reasoning.runtime.meshes import (
    RULES,
    MeshShape,
    check_accelerator,
    check_mesh,
    init_sharded,
    make_mesh,
    param_shardings,
    shard_rows,
    use_mesh,
)

SHAPES = ["2x2x2", *(pytest.param(x, marks=pytest.mark.slow) for x in ("8x1x1", "2x4x1", "1x4x2"))]


def mesh_of(shape):
    return make_mesh(MeshShape(1, *map(int, shape.split("x"))))


@pytest.fixture(scope="module")
def alone():
    """Losses and tokens of a single device."""
    losses, tokens, _ = mesh_worker.train_and_sample(None)
    return losses, tokens


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_devices_train_and_sample_as_one(alone, shape):
    mesh = mesh_of(shape)
    losses, tokens, state = mesh_worker.train_and_sample(mesh)
    np.testing.assert_allclose(losses, alone[0], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(tokens, alone[1])
    # Parameters and what the optimizer keeps of them are still where they were put.
    wanted = param_shardings(mesh_worker.CONFIG, mesh)
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(f"{s}"),
                 state.params, wanted)
    cut = {x.shape: s for x, s in zip(*map(jax.tree.leaves, (state.params, wanted)))}
    for leaf in jax.tree.leaves(state.opt_state):
        if leaf.shape in cut and leaf.ndim > 1:
            assert leaf.sharding.shard_shape(leaf.shape) == cut[leaf.shape].shard_shape(leaf.shape)


@pytest.mark.parametrize(("shape", "devices"), [
    pytest.param("2x2x2", 4, marks=pytest.mark.slow),
    pytest.param("1x1x2", 1, marks=pytest.mark.slow),  # both processes hold the same rows
    pytest.param("2x1x1", 1, marks=pytest.mark.slow),  # each goes through its own rows by itself
])
def test_two_processes_are_as_one(alone, shape, devices):
    for told in two_processes("mesh_worker.py", shape, devices, 2):
        np.testing.assert_allclose(told["losses"], alone[0], atol=1e-5, rtol=0)
        np.testing.assert_array_equal(told["tokens"], alone[1])


def test_a_checkpoint_goes_onto_another_mesh(tmp_path):
    config = mesh_worker.CONFIG
    before = init_sharded(config, jax.random.key(0), mesh_of("1x4x2"))
    save_tree(tmp_path / "params", before, {})
    for mesh in (mesh_of("2x2x2"), mesh_of("8x1x1"), None):
        like = init_sharded(config, jax.random.key(1), mesh)
        after = load_tree(tmp_path / "params", like)
        jax.tree.map(np.testing.assert_array_equal, before, after)
        for x, y in zip(*map(jax.tree.leaves, (after, like))):
            assert x.sharding == y.sharding


def test_every_matrix_is_cut_over_fsdp_and_tensor():
    params = init_sharded(mesh_worker.CONFIG, jax.random.key(0), mesh_of("1x4x2"))
    layers = params["params"]["layers"]
    for part in (layers["attention"]["query"], layers["feed_forward"]["gate"]):
        assert math.prod(part.sharding.shard_shape(part.shape)) * 8 == part.size


def test_an_axis_that_is_not_divided_stays_whole():
    mesh = {"replica": 1, "data": 2, "fsdp": 2, "tensor": 4}
    with nn.logical_axis_rules(RULES):
        assert partition(("vocab", "embed"), (30, 8), mesh) == PartitionSpec(None, ("fsdp",))
        assert partition(("batch", None), (8, 3), mesh) == PartitionSpec(
            ("replica", "data", "fsdp"), None
        )
        assert partition(("batch",), (6,), mesh) == PartitionSpec(None)
        assert partition(("sampled_embed",), (8,), mesh) == PartitionSpec(None)


def test_names_mean_nothing_without_a_mesh():
    x = jnp.ones((4, 4))
    assert constrain(x, "batch", "embed") is x
    with use_mesh(None):
        assert constrain(x, "batch", "embed") is x
    alone = shard_rows(x, None)
    assert isinstance(alone, jax.Array) and (alone == x).all()
    assert make_mesh(MeshShape()) is None


def test_what_cannot_be_cut_is_refused():
    model = ModelConfig(
        vocab_size=30, num_strategies=2, d_model=12, num_layers=1, num_heads=4, num_kv_heads=2,
        head_dim=8, d_ff=64, max_length=32,
    )
    check_mesh(MeshShape(data=8, fsdp=4, tensor=2), model)
    with pytest.raises(ValueError, match=r"mesh\.fsdp=8: does not divide the model's d_model=12"):
        check_mesh(MeshShape(fsdp=8), model)
    with pytest.raises(ValueError, match=r"mesh\.tensor=4: .* num_kv_heads=2"):
        check_mesh(MeshShape(tensor=4), model)
    with pytest.raises(ValueError, match=r"mesh\.data=0: must be at least 1"):
        MeshShape(data=0)
    with pytest.raises(ValueError, match=r"mesh=1x3x1x1 .* 3 places for 8 devices"):
        make_mesh(MeshShape(data=3))
    with pytest.raises(ValueError, match=r"rows=12: must be a multiple of the 8 parts"):
        shard_rows(np.zeros((12, 2)), mesh_of("2x4x1"))
    with pytest.raises(ValueError, match=r"accelerator=tpu: jax finds only cpu devices"):
        check_accelerator("tpu")
    check_accelerator("cpu")


@dataclasses.dataclass(frozen=True)
class Described:
    """As much of a device as a mesh looks at."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_replica_is_cut_over_the_slices():
    devices = [Described(id=i, slice_index=i % 2) for i in range(16)]
    mesh = make_mesh(MeshShape(replica=2, data=1, fsdp=4, tensor=2), devices)
    assert mesh.devices.shape == (2, 1, 4, 2) and set(mesh.devices.flat) == set(devices)
    for i in (0, 1):
        assert {device.slice_index for device in mesh.devices[i].flat} == {i}
    for shape in (MeshShape(data=2, fsdp=4, tensor=2), MeshShape(replica=4, fsdp=4)):
        with pytest.raises(ValueError, match=r"mesh\.replica=\d: .* 2 slices.*mesh\.replica=2\."):
            make_mesh(shape, devices)


def test_parameters_are_those_of_one_device():
    params = init_params(mesh_worker.CONFIG, jax.random.key(3))
    sharded = init_sharded(mesh_worker.CONFIG, jax.random.key(3), mesh_of("2x2x2"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, sharded)
