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
from reasoning.models.axes import constrain
from reasoning.models.cache import init_cache, take_rows
from reasoning.models.config import ModelConfig
from reasoning.models.logits import map_logits
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
    config: ModelConfig,
    params: Any,
    batch: TraceBatch,
    prefix: int,
    match_tokens: int,
    num_problems: int | None = None,
) -> jax.Array:
    """Mean NLL of each row's first `match_tokens` trace tokens under each tag: `[N, S]`.

    Only the first `prefix` tokens of a row are read; forks must lie before
    `prefix - match_tokens`. No gradient flows through the result.

    Args:
      num_problems: the batch has no more; each one's prompt is then read once, for all its traces
        and tags. None: every row and tag for itself.
    """
    params = jax.lax.stop_gradient(params)
    if num_problems is None:
        nll = _nll_by_rows(config, params, batch, prefix, match_tokens)
    else:
        longest_prompt = min(prefix - match_tokens, batch.tokens.shape[1]) - 1
        nll = _nll_by_problems(config, params, batch, longest_prompt, match_tokens, num_problems)
    last = batch.lengths - batch.fork - 1  # tokens of the trace
    mask = jnp.arange(nll.shape[2])[None] < last[:, None]
    total = jnp.sum(nll * mask[:, None], axis=2)
    return total / jnp.maximum(mask.sum(axis=1), 1)[:, None]


def _trace_windows(batch: TraceBatch, match_tokens: int) -> tuple[jax.Array, jax.Array]:
    """Where the first tokens of each row's trace are read, and these labels: `[N, L]` each.

    What lies behind a row's end is any other of its tokens.
    """
    width = batch.tokens.shape[1]
    places = batch.fork[:, None] + jnp.arange(min(match_tokens, width - 1))[None]
    labels = jnp.take_along_axis(batch.tokens, jnp.minimum(places + 1, width - 1), axis=1)
    return jnp.minimum(places, width - 1), labels


def _nll_by_rows(
    config: ModelConfig, params: Any, batch: TraceBatch, prefix: int, match_tokens: int
) -> jax.Array:
    """NLL `[N, S, L]` of the first trace tokens under each tag, by a row for each tag."""
    num_rows, num_tags = batch.tokens.shape[0], config.num_strategies
    short = batch.replace(tokens=batch.tokens[:, :prefix])
    tokens = jax.vmap(
        lambda tag: with_tags(config, short, jnp.full(num_rows, tag)), out_axes=1
    )(jnp.arange(num_tags))
    tokens = tokens.reshape(num_rows * num_tags, -1)
    hidden, _ = Transformer(config).apply(params, tokens, head=False)
    places, labels = (
        jnp.repeat(x, num_tags, axis=0) for x in _trace_windows(batch, match_tokens)
    )
    places = jnp.minimum(places, tokens.shape[1] - 1)
    read = jnp.take_along_axis(hidden, places[..., None], axis=1)
    nll = map_logits(token_nll, config, params, read, labels)
    return nll.reshape(num_rows, num_tags, -1)


def _nll_by_problems(
    config: ModelConfig,
    params: Any,
    batch: TraceBatch,
    longest_prompt: int,
    match_tokens: int,
    num_problems: int,
) -> jax.Array:
    """The same, by a row for each prompt, from whose cache the traces go on under each tag."""
    num_rows, num_tags = batch.tokens.shape[0], config.num_strategies
    rows = jnp.where(batch.lengths > 0, jnp.arange(num_rows), 0)
    one_of = jnp.zeros(num_problems, jnp.int32).at[batch.problem].max(rows)  # a row of each problem
    # On the left, as in sampling: the traces stand right behind their prompts.
    places = batch.fork[one_of, None] - longest_prompt + jnp.arange(longest_prompt)[None]
    prompts = jnp.take_along_axis(batch.tokens[one_of], jnp.maximum(places, 0), axis=1)
    cache = init_cache(config, num_problems, longest_prompt)
    _, cache = Transformer(config).apply(
        params, prompts, segment_ids=(places >= 0).astype(jnp.int32),
        positions=jnp.maximum(places, 0), cache=cache, num_scored=1, head=False,
    )
    places, labels = _trace_windows(batch, match_tokens)
    traces = jnp.take_along_axis(batch.tokens, places, axis=1)
    tags = jnp.broadcast_to(tag_to_id(config, jnp.arange(num_tags)), (num_rows, num_tags))
    traces = jnp.repeat(traces[:, None], num_tags, axis=1).at[:, :, 0].set(tags)
    traces = traces.reshape(num_rows * num_tags, -1)
    cache = take_rows(cache, batch.problem, config)  # each trace's, shared by its tags
    places, labels = (jnp.repeat(x, num_tags, axis=0) for x in (places, labels))
    hidden, _ = Transformer(config).apply(
        params, traces, positions=places, prefix=cache, head=False
    )
    nll = map_logits(token_nll, config, params, hidden, labels)
    return nll.reshape(num_rows, num_tags, -1)


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

    Args:
      costs: `[N, S]`, each row's NLL per token under each tag, in nats.
      match_tokens: L.
    """
    scored = jnp.clip(batch.lengths - batch.fork - 1, 0, match_tokens)
    log_posterior = jax.nn.log_softmax(-scored[:, None] * costs)
    entropy = -jnp.sum(jnp.exp(log_posterior) * log_posterior, axis=-1)
    exists = batch.lengths > 0
    return jnp.sum(entropy * exists) / jnp.maximum(exists.sum(), 1)


@partial(
    jax.jit,
    static_argnames=("arm", "config", "num_traces", "prefix", "match_tokens", "num_problems"),
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
    num_problems: int | None = None,
    due: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Tags `[N]` of a batch's rows under an arm, and the arm's metrics.

    Args:
      key: consumed by `random`.
      num_traces: M, the most traces that a problem has.
      prefix, match_tokens, num_problems: see `matching_costs`.
      due: `[N]` bool, which rows `matched` is to match, whole problems; the tags of the others
        mean nothing. None: all.

    Returns:
      the tags, and for `matched` its `matching_entropy` and `matching_cost` (nats per token), of
      the rows that are due.
    """
    num_rows, num_tags = batch.tokens.shape[0], config.num_strategies
    if arm == "mixed":
        return jnp.zeros(num_rows, jnp.int32), {}
    if arm == "fixed":
        return jnp.asarray(batch.slot), {}
    if arm == "random":
        return random_injection(batch, num_tags, key), {}
    if due is not None:
        batch = batch.replace(lengths=jnp.where(due, batch.lengths, 0))  # the others: as padding
    costs = matching_costs(config, params, batch, prefix, match_tokens, num_problems)
    tags = match_rows(costs, batch, num_traces)
    exists = batch.lengths > 0
    paid = jnp.take_along_axis(costs, tags[:, None], axis=1)[:, 0]
    return tags, {
        "matching_entropy": matching_entropy(costs, batch, match_tokens),
        "matching_cost": jnp.sum(paid * exists) / jnp.maximum(exists.sum(), 1),
    }


@jax.jit
def keep_tags(
    kept: jax.Array, batch: TraceBatch, due: jax.Array, tags: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The tags of rows that are due go into the table of kept ones, those of all rows come from it.

    Args:
      kept: `[E, M]` int32, of E examples' traces; `problem_seed` is an example's index.
      due, tags: `[N]`, as `assign` takes and returns them; no tags where no row is due.

    Returns:
      tags `[N]` of the batch's rows, and the table.
    """
    if tags is not None:
        written = due & (batch.lengths > 0)
        example = jnp.where(written, batch.problem_seed, len(kept))  # out of range: dropped
        kept = kept.at[example, batch.slot].set(tags, mode="drop")
        kept = constrain(kept, None, None)  # on a mesh every device has all of it
    return kept[batch.problem_seed, batch.slot], kept
