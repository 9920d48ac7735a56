"""Meshes: which device holds which part of every array, by one table of rules.

    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    with use_mesh(mesh):
        params = jax.device_put(params, param_shardings(config, mesh))
        batch = shard_rows(batch, mesh)           # rows over replica, data and fsdp
        state, metrics = update(state, batch)     # jitted functions follow their arguments

The model names its axes (`reasoning.models.transformer.logical_axes`); RULES maps the names to axes
of the mesh. Outside of `use_mesh` the names mean nothing.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reasoning.models.config import ModelConfig
from reasoning.models.transformer import init_params, logical_axes

AXES = ("replica", "data", "fsdp", "tensor")
ROWS = ("replica", "data", "fsdp")
# The model's name of an axis -> the axes of the mesh that share it out; other names stay whole.
RULES = (
    ("batch", ROWS),
    ("group", ("replica", "data")),  # the rows of the devices that share the parameters out
    ("embed", "fsdp"),
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


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices.

    Raises:
      ValueError: the shape needs another number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if math.prod(shape.sizes) != len(devices):
        raise ValueError(
            f"mesh={'x'.join(map(str, shape.sizes))} ({', '.join(AXES)}): needs "
            f"{math.prod(shape.sizes)} devices, and there are {len(devices)}."
        )
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    # An axis may take a part of one of the torus: v6e:16x16 has no whole one of 4 or of 32.
    grid = mesh_utils.create_device_mesh(shape.sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Within it, the names of the model's axes mean axes of the mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def param_shardings(config: ModelConfig, mesh: Mesh) -> Any:
    """The tree of `init_params` with each array's sharding."""
    rules = dict(RULES)

    def sharding(names: PartitionSpec, array: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [rules.get(name) for name in names]
        # A vocabulary of any size, and few strategies: whole where they cannot be cut evenly.
        axes = [
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, array.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*axes))

    shapes = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    return jax.tree.map(
        sharding, logical_axes(config), shapes, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )


def row_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch whose first axis are rows."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def shard_rows(batch: Any, mesh: Mesh) -> Any:
    """Arrays with their first axis cut over the mesh (ValueError: it cannot be cut evenly)."""
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    for array in jax.tree.leaves(batch):
        if array.shape[0] % parts:
            raise ValueError(
                f"rows={array.shape[0]}: must be a multiple of the {parts} parts that replica, "
                "data and fsdp of the mesh make."
            )
    return jax.device_put(batch, row_sharding(mesh))
