"""The names of arrays' axes, and how a mesh cuts them.

Within `reasoning.runtime.meshes.use_mesh` a name stands for axes of the mesh (its table RULES);
outside of it, nothing here does anything.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

Result = TypeVar("Result")


def partition(
    names: Sequence[str | None], shape: Sequence[int], mesh: Mapping[str, int]
) -> PartitionSpec:
    """How the mesh (sizes of its axes) cuts an array `shape`, by the rules that are in force.

    An axis that its devices do not divide stays whole: a vocabulary of any size, few strategies.
    """
    rules = dict(nn.get_logical_axis_rules())
    cut = []
    for name, size in zip(names, shape, strict=True):
        axes = rules.get(name) or ()
        axes = (axes,) if isinstance(axes, str) else tuple(axes)
        cut.append(axes if axes and size % math.prod(mesh[axis] for axis in axes) == 0 else None)
    return PartitionSpec(*cut)


def in_force() -> bool:
    """Whether names mean anything here: there are rules and a mesh of these devices."""
    return bool(nn.get_logical_axis_rules()) and not jax.sharding.get_abstract_mesh().empty


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """The same array, any shape, cut over the mesh along its axes of these names."""
    if not in_force():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x, partition(names, x.shape, mesh.shape))


def row_parts() -> int:
    """Into how many parts a mesh cuts rows; 1 without one."""
    if not in_force():
        return 1
    mesh = jax.sharding.get_abstract_mesh().shape
    return math.prod(mesh[axis] for axis in dict(nn.get_logical_axis_rules())["batch"])


def rows_apart(num_rows: int, unit: int = 1) -> int:
    """Into how many parts so many rows fall, each of which a device goes through by itself.

    1 without a mesh; 0 on one that cuts the parameters, or whose devices would not all have the
    same multiple of `unit` rows.
    """
    if not in_force():
        return 1
    mesh = jax.sharding.get_abstract_mesh()
    (axes,) = partition(("group",), (num_rows // unit,), mesh.shape)
    alone = axes and math.prod(mesh.shape[axis] for axis in axes) == mesh.size
    return mesh.size if alone and num_rows % unit == 0 else 0


def by_device(
    function: Callable[[Any, Any], Result], whole: Any, rows: Any, unit: int = 1
) -> Result:
    """`function(whole, rows)`, of each device's rows where it has such for itself (`rows_apart`).

    The devices do not wait for each other: a loop ends on each as its own rows let it.

    Args:
      function: to arrays whose parts, of all devices, put together are the result. It closes over
        no array: to a device those of all devices mean nothing.
      whole: what every device reads, a pytree.
      rows: what is shared out, a pytree of arrays `[B, ...]`.
      unit: the function takes multiples of so many rows.
    """
    if not in_force() or not rows_apart(len(jax.tree.leaves(rows)[0]), unit):
        return function(whole, rows)

    def alone(whole: Any, rows: Any) -> Result:
        with nn.logical_axis_rules(()):  # the names mean nothing to a single device
            return function(whole, rows)

    cut = PartitionSpec(dict(nn.get_logical_axis_rules())["group"])
    # No device reads another's rows; the check would want every constant marked as varying.
    alone = jax.shard_map(
        alone, in_specs=(PartitionSpec(), cut), out_specs=cut, check_vma=False
    )
    return alone(whole, rows)
