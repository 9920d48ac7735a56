"""Which strategy tag each trace is trained under: four arms behind one function.

    mixed     every trace under tag 0: plain fine-tuning on several solutions
    random    an injection of a problem's traces into the tags, drawn anew at every step
    fixed     trace j of a problem under tag j
    matched   the injection under which the policy finds the traces most likely, by rectangular
              linear assignment: set-supervised fine-tuning (SSFT, arXiv 2510.05132)

The matching cost of trace j under tag i is the stop-gradient mean NLL of the trace's first L
tokens (2510.05132):  L_match(i, j) = -sg( 1/L sum_{t<=L} log pi(r_t | x, g_i, r_<t) ).
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from reasoning.data.pipelines import TraceBatch
from reasoning.learning.losses import token_nll
from reasoning.models.config import ModelConfig
from reasoning.models.strategies import tag_to_id
from reasoning.models.transformer import Transformer

Arm = Literal["mixed", "random", "fixed", "matched"]
ARMS: tuple[Arm, ...] = ("mixed", "random", "fixed", "matched")


def check_arm(arm: str, num_traces: int, num_strategies: int) -> None:
    """Refuse an unknown arm, or one that cannot give every trace a tag of its own.

    Raises:
      ValueError: in one sentence.
    """
    if arm not in ARMS:
        raise ValueError(f"arm={arm!r}: must be one of {', '.join(ARMS)}.")
    if arm != "mixed" and num_traces > num_strategies:
        raise ValueError(
            f"arm={arm!r}: gives every trace of a problem a tag of its own, so "
            f"num_strategies={num_strategies} must be at least the {num_traces} traces."
        )


def trained_tags(arm: Arm, num_traces: int, num_strategies: int) -> range:
    """The tags that an arm ever assigns: one, those of the M traces, or all S."""
    return range({"mixed": 1, "fixed": num_traces}.get(arm, num_strategies))


def with_tags(config: ModelConfig, batch: TraceBatch, tags: jax.Array) -> jax.Array:
    """The batch's tokens `[N, T]` with the tag of each row, `[N]`, written at its fork."""
    at_fork = jnp.arange(batch.tokens.shape[1])[None] == batch.fork[:, None]
    return jnp.where(at_fork, tag_to_id(config, tags)[:, None], batch.tokens)


def matching_costs(
    config: ModelConfig, params: Any, batch: TraceBatch, prefix: int, match_tokens: int
) -> jax.Array:
    """Mean NLL of each row's first `match_tokens` trace tokens under each tag: `[N, S]`.

    Only the first `prefix` tokens of a row are read; forks must lie before
    `prefix - match_tokens`. No gradient flows through the result.
    """
    num_rows, num_tags = batch.tokens.shape[0], config.num_strategies
    short = batch.replace(tokens=batch.tokens[:, :prefix])
    tokens = jax.vmap(lambda tag: with_tags(config, short, jnp.full(num_rows, tag)))(
        jnp.arange(num_tags)
    )
    tokens = tokens.reshape(num_tags * num_rows, -1)  # [S*N, prefix]
    logits, _ = Transformer(config).apply(jax.lax.stop_gradient(params), tokens)
    nll = token_nll(logits, tokens).reshape(num_tags, num_rows, -1)
    place = jnp.arange(1, tokens.shape[1])[None]  # the position that each label stands at
    after, last = batch.fork[:, None], batch.lengths[:, None]
    mask = (place > after) & (place <= after + match_tokens) & (place < last)
    return (jnp.sum(nll * mask[None], axis=-1) / jnp.maximum(mask.sum(axis=-1), 1)[None]).T


def match(costs: jax.Array) -> jax.Array:
    """The injection of M traces into S tags of least total cost: `[M, S]` -> tags `[M]`.

    Ties go to the solution that optax finds first.
    """
    traces, tags = optax.assignment.hungarian_algorithm(costs)
    return jnp.zeros(costs.shape[0], jnp.int32).at[traces].set(tags.astype(jnp.int32))


def match_rows(costs: jax.Array, batch: TraceBatch, num_traces: int) -> jax.Array:
    """`match` for every problem of a batch: row costs `[N, S]` -> tags `[N]`.

    A problem with fewer than M traces has rows of equal costs in their place: whatever tags
    these take, the traces that exist still get their own best injection.
    """
    num_rows, num_tags = costs.shape
    exists = batch.lengths > 0
    problem = jnp.where(exists, batch.problem, num_rows)  # out of range: dropped by the scatter
    per_problem = jnp.zeros((num_rows, num_traces, num_tags), costs.dtype)
    per_problem = per_problem.at[problem, batch.slot].set(costs, mode="drop")
    tags = jax.vmap(match)(per_problem)
    return tags[batch.problem, batch.slot]


def random_injection(batch: TraceBatch, num_strategies: int, key: jax.Array) -> jax.Array:
    """Tags `[N]`: for each problem the first entries of its own random permutation of the tags."""
    keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(batch.problem_seed)
    orders = jax.vmap(lambda k: jax.random.permutation(k, num_strategies))(keys)
    return jnp.take_along_axis(orders, batch.slot[:, None], axis=1)[:, 0]


def matching_entropy(costs: jax.Array, batch: TraceBatch, match_tokens: int) -> jax.Array:
    """How undecided the tags are, in nats: mean entropy of p(tag | the trace's first L tokens).

    ln S where no tag prefers any trace, 0 where every trace belongs to one tag. The likelihood of
    n = min(T, L) tokens under tag i is exp(-n cost_i); tags are equally likely beforehand.
    """
    scored = jnp.clip(batch.lengths - batch.fork - 1, 0, match_tokens)
    log_posterior = jax.nn.log_softmax(-scored[:, None] * costs)
    entropy = -jnp.sum(jnp.exp(log_posterior) * log_posterior, axis=-1)
    exists = batch.lengths > 0
    return jnp.sum(entropy * exists) / jnp.maximum(exists.sum(), 1)


@partial(
    jax.jit, static_argnames=("arm", "config", "num_traces", "prefix", "match_tokens")
)
def assign(
    arm: Arm,
    config: ModelConfig,
    params: Any,
    batch: TraceBatch,
    key: jax.Array,
    *,
    num_traces: int,
    prefix: int,
    match_tokens: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Tags `[N]` of a batch's rows under an arm, and the arm's metrics.

    Args:
      key: consumed by `random`.
      num_traces: M, the most traces that a problem has.
      prefix, match_tokens: see `matching_costs`.

    Returns:
      the tags, and for `matched` its `matching_entropy` and `matching_cost` (nats per token).
    """
    num_rows, num_tags = batch.tokens.shape[0], config.num_strategies
    if arm == "mixed":
        return jnp.zeros(num_rows, jnp.int32), {}
    if arm == "fixed":
        return jnp.asarray(batch.slot), {}
    if arm == "random":
        return random_injection(batch, num_tags, key), {}
    costs = matching_costs(config, params, batch, prefix, match_tokens)
    tags = match_rows(costs, batch, num_traces)
    exists = batch.lengths > 0
    paid = jnp.take_along_axis(costs, tags[:, None], axis=1)[:, 0]
    return tags, {
        "matching_entropy": matching_entropy(costs, batch, match_tokens),
        "matching_cost": jnp.sum(paid * exists) / jnp.maximum(exists.sum(), 1),
    }
