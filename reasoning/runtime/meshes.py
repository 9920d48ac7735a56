"""Meshes: which device holds which part of every array, by one table of rules.

    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    with use_mesh(mesh):
        params = init_sharded(config, key, mesh)
        batch = shard_rows(batch, mesh)           # rows over replica, data and fsdp
        state, metrics = update(state, batch)     # jitted functions follow their arguments

The model names its axes (`reasoning.models.axes`); RULES maps the names to axes of the mesh.
Without a mesh (None) everything is on the first device.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reasoning.models.axes import partition
from reasoning.models.config import ModelConfig
from reasoning.models.transformer import init_params, logical_axes

AXES = ("replica", "data", "fsdp", "tensor")
ROWS = ("replica", "data", "fsdp")
# The model's name of an axis -> the axes of the mesh that share it out; other names stay whole.
RULES = (
    ("batch", ROWS),
    ("group", ("replica", "data")),  # the rows of the devices that share the parameters out
    ("embed", "fsdp"),  # and "sampled_embed" is whole: not gathered again for every token
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each axis.

    Attributes:
      replica: slices that are joined by the data-centre network alone; parameters are copied.
      data: rows are shared out, parameters are copied.
      fsdp: rows are shared out, and so are parameters and optimizer state.
      tensor: heads and feed-forward width are shared out.
    """

    replica: int = 1
    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for axis in AXES:
            if getattr(self, axis) < 1:
                raise ValueError(f"mesh.{axis}={getattr(self, axis)}: must be at least 1.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Devices along each of AXES."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def rows(self) -> int:
        """Parts that the rows of a batch are cut into."""
        return self.replica * self.data * self.fsdp

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.sizes)


def check_mesh(shape: MeshShape, model: ModelConfig) -> None:
    """Refuse a mesh that does not divide the model (ValueError)."""
    for axis, names in (
        ("fsdp", ("d_model",)),
        ("tensor", ("num_heads", "num_kv_heads", "d_ff")),
    ):
        for name in names:
            if getattr(model, name) % getattr(shape, axis):
                raise ValueError(
                    f"mesh.{axis}={getattr(shape, axis)}: does not divide the model's "
                    f"{name}={getattr(model, name)}; choose a divisor."
                )


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The mesh over all devices; None for a single device of a single process.

    Raises:
      ValueError: the shape needs another number of devices, or of slices.
    """
    if shape.devices == 1 and devices is None and jax.process_count() == 1:
        return None
    devices = jax.devices() if devices is None else devices
    if shape.devices != len(devices):
        raise ValueError(
            f"mesh={'x'.join(map(str, shape.sizes))} ({' x '.join(AXES)}): has {shape.devices} "
            f"places for {len(devices)} devices; choose sizes whose product is {len(devices)}."
        )
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    return Mesh(_grid(shape, devices), AXES, axis_types=types)


def _grid(shape: MeshShape, devices: Sequence[Any]) -> np.ndarray:
    """The devices in the mesh's shape, neighbours in it being neighbours on the links."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # An axis may take a part of one of the torus: v6e:16x16 has no whole one of 4 or of 32.
    split = {"allow_split_physical_axes": True}
    if slices == 1:
        return mesh_utils.create_device_mesh(shape.sizes, devices, **split)
    if shape.replica != slices:
        raise ValueError(
            f"mesh.replica={shape.replica}: the devices are {slices} slices, and over slices only "
            f"replica is cut; choose mesh.replica={slices}."
        )
    inner = dataclasses.replace(shape, replica=1)
    return mesh_utils.create_hybrid_device_mesh(inner.sizes, (slices, 1, 1, 1), devices, **split)


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Within it, the names of the model's axes mean axes of the mesh."""
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def param_shardings(config: ModelConfig, mesh: Mesh) -> Any:
    """The tree of `init_params` with each array's sharding."""
    shapes = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    with nn.logical_axis_rules(RULES):
        return jax.tree.map(
            lambda names, x: NamedSharding(mesh, partition(names, x.shape, mesh.shape)),
            logical_axes(config), shapes, is_leaf=lambda x: isinstance(x, PartitionSpec),
        )


def init_sharded(config: ModelConfig, key: jax.Array, mesh: Mesh | None) -> Any:
    """`init_params`, each array made where it belongs."""
    if mesh is None:
        return init_params(config, key)
    make = jax.jit(partial(init_params, config), out_shardings=param_shardings(config, mesh))
    return make(key)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch whose first axis are rows."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def num_row_parts(mesh: Mesh) -> int:
    """Into how many parts the mesh cuts the rows of a batch."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def shard_rows(batch: Any, mesh: Mesh | None) -> Any:
    """Arrays whose rows are cut over the mesh, from all rows, which every process has.

    Without a mesh they are put on the device. That the caller does so, and not the call that reads
    them, keeps the loop free of hidden transfers (`jax.transfer_guard`).

    A process puts on its devices the rows that belong there. Those of another process may be the
    same ones, where a group of `tensor` spans hosts.

    Raises:
      ValueError: the rows cannot be cut evenly.
    """
    if mesh is None:
        return jax.device_put(batch)
    parts = num_row_parts(mesh)
    for array in jax.tree.leaves(batch):
        if array.shape[0] % parts:
            raise ValueError(
                f"rows={array.shape[0]}: must be a multiple of the {parts} parts that replica, "
                "data and fsdp of the mesh make."
            )
    sharding = row_sharding(mesh)

    def cut(rows: Any) -> jax.Array:
        rows = np.asarray(rows)
        return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

    return jax.tree.map(cut, batch)


def start_processes(coordinator: str | None, num_processes: int | None, index: int | None) -> None:
    """Join the processes of a job, one per host, before anything else of jax; all call it.

    On TPUs everything is found out (None); elsewhere the address `HOST:PORT` of the first process,
    their number and this one's index are needed.
    """
    jax.distributed.initialize(coordinator, num_processes, index)


def check_accelerator(wanted: str) -> None:
    """Refuse to run on CPUs by accident.

    Raises:
      ValueError: the devices are of another kind than "tpu", "gpu" or "cpu", the one wanted.
    """
    found = jax.default_backend()
    if found != wanted:
        raise ValueError(
            f"accelerator={wanted}: jax finds only {found} devices; install the extra [tpu] or "
            f"[cuda], and end what else holds the {wanted}s, or choose --accelerator={found}."
        )
