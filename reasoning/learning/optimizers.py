"""The optimizers: AdamW and Muon from optax, with warm-up, cosine decay and clipping."""

import dataclasses
import functools
from typing import Any

import jax
import optax

from reasoning.models import strategies

# Weight matrices by name: the axes that are summed over, and those that come out. Layers that are
# scanned add an axis in front.
_MATRICES = {
    "query": ((-3,), (-2, -1)),
    "key": ((-3,), (-2, -1)),
    "value": ((-3,), (-2, -1)),
    "output": ((-3, -2), (-1,)),
    "gate": ((-2,), (-1,)),
    "up": ((-2,), (-1,)),
    "down": ((-2,), (-1,)),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer with linear warm-up, cosine decay, and clipping by global norm.

    Attributes:
      name: "adamw", or "muon": orthogonalised momentum for the layers' matrices (2502.16982, scaled
        to the update size of AdamW so that one learning rate serves both) and NAdam for the rest.
      learning_rate: the peak.
      num_steps: length of the schedule.
      warmup_steps: steps from 0 to the peak.
      final_share: the rate at the end of the decay, as a share of the peak.
      b1, b2: decay of Adam's first and second moments.
      weight_decay: decoupled, on the layers' matrices only.
      clip_norm: largest global norm of the gradient of what is trained.
      trained: "all" parameters, or "strategies": their embeddings, and head if it is not tied.

    Raises:
      ValueError: an unknown name, or a value that no schedule can have.
    """

    name: str = "adamw"
    learning_rate: float = 3e-3
    num_steps: int = 1000
    warmup_steps: int = 20
    final_share: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    trained: str = "all"

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "muon"):
            raise ValueError(f"optimizer={self.name!r}: must be adamw or muon.")
        if self.trained not in ("all", "strategies"):
            raise ValueError(f"trained={self.trained!r}: must be all or strategies.")
        for name in ("learning_rate", "num_steps", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0.")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or above.")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"final_share={self.final_share}: must lie in [0, 1].")


def _is_matrix(path: tuple) -> bool:
    return path[-1].key in _MATRICES


def _matrix_axes(params: Any) -> Any:
    """For each parameter the axes Muon reduces and keeps; None where it updates them like Adam."""

    def axes(path: tuple, x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if not _is_matrix(path):
            return None
        reduced, kept = _MATRICES[path[-1].key]
        return optax.contrib.MuonDimensionNumbers(
            tuple(axis + x.ndim for axis in reduced), tuple(axis + x.ndim for axis in kept)
        )

    return jax.tree_util.tree_map_with_path(axes, params)


def _matrix_mask(params: Any) -> Any:
    """True for the layers' matrices."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_matrix(path), params)


def _strategies_trained(params: Any) -> Any:
    """"trained" for the rows of the strategies, "frozen" for the rest."""
    rows = (strategies.TABLE, strategies.HEAD)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "trained" if path[-1].key in rows else "frozen", params
    )


def freeze(params: Any, trained: str) -> Any:
    """The parameters, with a gradient for what is `trained` alone, as of `OptimizerConfig`."""
    if trained == "all":
        return params
    return jax.tree.map(
        lambda kind, x: x if kind == "trained" else jax.lax.stop_gradient(x),
        _strategies_trained(params), params,
    )


@functools.cache
def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optax chain that an `OptimizerConfig` describes.

    The same object for the same configuration, so that a jitted update is compiled once.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(config.num_steps, config.warmup_steps + 1),
        end_value=config.learning_rate * config.final_share,
    )
    if config.name == "adamw":
        optimizer = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=_matrix_mask,
        )
    else:
        optimizer = optax.contrib.muon(
            schedule,
            adam_b1=config.b1,
            adam_b2=config.b2,
            weight_decay=config.weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_matrix_axes,
        )
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if config.trained == "all":
        return optimizer
    return optax.multi_transform(
        {"trained": optimizer, "frozen": optax.set_to_zero()}, _strategies_trained
    )
