"""The jitted update of supervised fine-tuning, plain and set-supervised.

    tags        = assign(arm, params, batch)                       no gradient
    loss        = NLL of the traces, each under its tag            2510.05132, L_Hungarian
    params      = optimizer(params, gradient of the loss)
"""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from reasoning.data.pipelines import TraceBatch
from reasoning.learning import assignment
from reasoning.learning.losses import Reduction, label_weights, token_nll
from reasoning.learning.optimizers import freeze
from reasoning.models.axes import by_device, constrain
from reasoning.models.config import ModelConfig
from reasoning.models.logits import map_logits
from reasoning.models.transformer import Transformer


@flax.struct.dataclass
class TrainState:
    """What an update changes: parameters, optimizer state, and the scalar int32 step.

    `kept_tags` `[E, M]` int32 are those of E examples' traces where they outlive a step
    (`reasoning.learning.assignment.keep_tags`); None: nowhere.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    kept_tags: Any = None


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at step 0 that owns a copy of the parameters (updates donate their buffers)."""
    params = jax.tree.map(jnp.copy, params)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def label_mask(batch: TraceBatch, tag_is_label: bool) -> jax.Array:
    """`[N, T-1]`, 1 where the label is a trace token (or the tag, if it is to be learned)."""
    place = jnp.arange(1, batch.tokens.shape[1])[None]
    first = batch.fork[:, None] + (0 if tag_is_label else 1)
    return ((place >= first) & (place < batch.lengths[:, None])).astype(jnp.float32)


def read_rows(
    config: ModelConfig, params: Any, batch: TraceBatch, tags: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Hidden states `[N, T-1, D]` before the labels `[N, T-1]`, of the rows under their tags."""
    tokens = assignment.with_tags(config, batch, tags)
    segment_ids = (jnp.arange(tokens.shape[1])[None] < batch.lengths[:, None]).astype(jnp.int32)
    hidden, _ = Transformer(config).apply(params, tokens, segment_ids=segment_ids, head=False)
    return hidden[:, :-1], tokens[:, 1:]


def row_nll(config: ModelConfig, params: Any, batch: TraceBatch, tags: jax.Array) -> jax.Array:
    """-log p of tokens 1..T-1 of the rows under their tags `[N]`: `[N, T-1]` nats."""
    return map_logits(token_nll, config, params, *read_rows(config, params, batch, tags))


def count_sets(batch: TraceBatch) -> jax.Array:
    """How many problems have rows in the batch."""
    return jnp.sum((batch.lengths > 0) * (batch.slot == 0)).astype(jnp.float32)


def apply_gradient(
    state: TrainState, grads: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state after one step of the optimizer."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, opt_state=opt_state, step=state.step + 1)


@flax.struct.dataclass
class Sequences:
    """B sequences of L tokens as the policy reads them, with the labels that it learns.

    Attributes:
      tokens, segment_ids, positions: `[B, L]` int32, as `Transformer` takes them.
      labels: `[B, L]` int32, the token after each, of the same row.
      weights: `[B, L]` float32 of each label in the loss, 0 where there is none.
      trace_weights: `[B, L]` float32, in the mean over trace tokens.
    """

    tokens: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    labels: jax.Array
    weights: jax.Array
    trace_weights: jax.Array


def lay_out(
    batch: TraceBatch,
    tokens: jax.Array,
    weights: jax.Array,
    trace_weights: jax.Array,
    packing: tuple[int, int] | None,
) -> Sequences:
    """Rows as sequences: each for itself, or where the batch says that it lies.

    Args:
      tokens: `[N, T]`, the rows with their tags.
      weights, trace_weights: `[N, T-1]` of tokens 1..T-1.
      packing: B and L; None: a sequence for each row.
    """
    num_rows, width = tokens.shape
    place = jnp.broadcast_to(jnp.arange(width)[None], tokens.shape)
    inside = place < batch.lengths[:, None]
    segments = jnp.broadcast_to(jnp.arange(num_rows)[:, None] + 1, tokens.shape)
    weights, trace_weights = (jnp.pad(x, ((0, 0), (0, 1))) for x in (weights, trace_weights))
    labels = jnp.roll(tokens, -1, axis=1)
    if packing is None:
        segments = inside.astype(jnp.int32)
        return Sequences(tokens, segments, place, labels, weights, trace_weights)
    num_sequences, length = packing
    slot = batch.sequence[:, None] * length + batch.offset[:, None] + place
    slot = jnp.where(inside, slot, num_sequences * length)  # out of range: dropped

    def put(x: jax.Array) -> jax.Array:
        empty = jnp.zeros(num_sequences * length, x.dtype)
        packed = empty.at[slot].set(x, mode="drop").reshape(packing)
        return constrain(packed, "batch", None)

    return jax.tree.map(put, Sequences(tokens, segments, place, labels, weights, trace_weights))


def split_rows(tree: Any, num_parts: int) -> Any:
    """Arrays `[B, ...]` as `[num_parts, B / num_parts, ...]`: the microbatches.

    Every part takes its rows from all over the batch: on a mesh, some of each device's. (Those of
    reinforcement learning are cut by `reasoning.learning.scoring.split_parts`.)
    """
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, num_parts, *x.shape[1:]), 0, 1), tree
    )


@partial(
    jax.jit,
    static_argnames=(
        "config", "optimizer", "reduction", "tag_is_label", "num_microbatches", "packing",
        "trained",
    ),
    donate_argnames=("state",),
)
def sft_update(
    state: TrainState,
    batch: TraceBatch,
    tags: jax.Array,
    *,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    reduction: Reduction = "token_mean",
    tag_is_label: bool = True,
    num_microbatches: int = 1,
    packing: tuple[int, int] | None = None,
    trained: str = "all",
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on the traces, each under its tag `[N]`.

    Args:
      tag_is_label: whether the policy also learns to write the tag itself, so that it has a
        distribution over strategies (default; the paper's formula leaves it out, its released
        evaluator needs it).
      num_microbatches: the gradient is summed over so many parts of the sequences, one after
        another, which bounds the memory; it divides their number.
      packing: number and length of the sequences in which the rows lie; None: every row stands
        alone.
      trained: as of `OptimizerConfig`; what the optimizer does not train gets no gradient.

    Returns:
      the new state (the old one is donated), and metrics: `loss` (as reduced), `trace_nll` (nats
      per trace token), `grad_norm`, `tokens` (labels), `tag_usage` `[S]` (shares of the traces).
    """
    mask, trace = label_mask(batch, tag_is_label), label_mask(batch, tag_is_label=False)
    weights = label_weights(mask, reduction, count_sets(batch))
    trace_weights = label_weights(trace, "token_mean", 1)

    tokens = assignment.with_tags(config, batch, tags)
    sequences = lay_out(batch, tokens, weights, trace_weights, packing)

    def loss_of(params: Any, part: Sequences) -> tuple[jax.Array, jax.Array]:
        params = freeze(params, trained)
        hidden, _ = Transformer(config).apply(
            params, part.tokens, segment_ids=part.segment_ids, positions=part.positions, head=False
        )
        nll = map_logits(token_nll, config, params, hidden, part.labels)
        return jnp.sum(nll * part.weights), jnp.sum(nll * part.trace_weights)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def of_rows(params: Any, sequences: Sequences) -> tuple[tuple[jax.Array, jax.Array], Any]:
        """Loss and gradient `[1, ...]` of what a device has of the sequences."""

        def add(total: Any, part: Sequences) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, part)), None

        if num_microbatches == 1:
            total = gradient(params, sequences)
        else:
            nothing = (jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, params)
            total, _ = jax.lax.scan(add, nothing, split_rows(sequences, num_microbatches))
        return jax.tree.map(lambda x: x[None], total)

    made = by_device(of_rows, state.params, sequences, num_microbatches)
    (loss, trace_nll), grads = jax.tree.map(lambda x: x.sum(axis=0), made)
    exists = (batch.lengths > 0).astype(jnp.float32)
    usage = jnp.zeros(config.num_strategies).at[tags].add(exists) / jnp.maximum(exists.sum(), 1)
    metrics = {
        "loss": loss,
        "trace_nll": trace_nll,
        "grad_norm": optax.tree.norm(grads),
        "tokens": mask.sum(),
        "tag_usage": usage,
    }
    return apply_gradient(state, grads, optimizer), metrics
