"""The names of arrays' axes, and how a mesh cuts them.

Within `reasoning.runtime.meshes.use_mesh` a name stands for axes of the mesh (its table RULES);
outside of it, nothing here does anything.
"""

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec


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
