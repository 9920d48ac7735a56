"""Temperature, top-k, top-p and min-p: from the policy's logits to those that are sampled from."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that 0 * log p stays 0


@flax.struct.dataclass
class Filters:
    """How to sample; numbers may change from call to call without recompiling.

    A filter that is None is compiled out. Filters apply in the order of the fields, each to the
    renormalised distribution that the one before it leaves.

    Attributes:
      temperature: logits are divided by it; 0 is greedy decoding.
      top_k: keep the k likeliest tokens (ties with the k-th stay).
      top_p: keep the fewest tokens that hold at least this mass.
      min_p: keep tokens at least this fraction as likely as the likeliest.
    """

    temperature: Any = 1.0
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None

    def check(self) -> "Filters":
        """Refuse settings outside their range, with one sentence each.

        Raises:
          ValueError: negative temperature, top_k < 1, top_p or min_p outside (0, 1].
        """
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or above.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be at least 1, or None to keep all.")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}={value}: must lie in (0, 1], or be None.")
        return self


def filter_logits(
    logits: jax.Array, filters: Filters, drawn: jax.Array | None = None
) -> jax.Array:
    """Log-probabilities `[..., V]` of the distribution to sample from; removed tokens: MASKED.

    At temperature 0 the distribution is left at temperature 1 (see `choose`).

    Args:
      drawn: `[...]` int32, tokens that were drawn under these filters and so stay: computed again
        with other rounding, one at the edge could fall out.
    """
    temperature = jnp.where(filters.temperature == 0, 1.0, filters.temperature)
    logits = logits.astype(jnp.float32)
    # The likeliest token is at 0 before the division: a low temperature enlarges no rounding there.
    # Log-probs do not depend on the shift, and so neither does their gradient.
    logits = logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    log_probs = jax.nn.log_softmax(logits / temperature)
    stays = jnp.zeros((), bool) if drawn is None else jax.nn.one_hot(
        drawn, logits.shape[-1], dtype=bool
    )
    if filters.top_k is not None:
        ranked = jnp.sort(log_probs, axis=-1, descending=True)
        last = jnp.clip(jnp.asarray(filters.top_k) - 1, 0, logits.shape[-1] - 1)
        least = jnp.take(ranked, last, axis=-1)[..., None]
        log_probs = _keep(log_probs, (log_probs >= least) | stays)
    if filters.top_p is not None:
        ranked = jnp.sort(log_probs, axis=-1, descending=True)
        probs = jnp.exp(ranked)
        before = jnp.cumsum(probs, axis=-1) - probs  # mass of the strictly likelier tokens
        kept = jnp.sum(before < filters.top_p, axis=-1, keepdims=True)
        least = jnp.take_along_axis(ranked, kept - 1, axis=-1)
        log_probs = _keep(log_probs, (log_probs >= least) | stays)
    if filters.min_p is not None:
        least = log_probs.max(axis=-1, keepdims=True) + jnp.log(filters.min_p)
        log_probs = _keep(log_probs, (log_probs >= least) | stays)
    return log_probs


def _keep(log_probs: jax.Array, keep: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(jnp.where(keep, log_probs, MASKED))


def choose(log_probs: jax.Array, uniform: jax.Array, temperature: jax.Array) -> jax.Array:
    """Tokens `[B]` drawn from `[B, V]` by inverting the cumulative distribution at `[B]` uniforms.

    One uniform a row is several times cheaper than one Gumbel a token. Temperature 0 takes the
    likeliest token.
    """
    probs = jnp.exp(log_probs)
    cumulative = jnp.cumsum(probs, axis=-1)
    # Scaled by the last entry, so that rounding cannot push the draw past the last token.
    threshold = uniform[:, None] * cumulative[:, -1:]
    # A parallel sum rounds each entry in its own way, also where nothing is added: a token of
    # probability zero is never drawn only if it is left out by name.
    places, possible = jnp.arange(probs.shape[-1])[None], probs > 0
    drawn = jnp.where(possible & (cumulative > threshold), places, probs.shape[-1]).min(axis=-1)
    # A uniform just below 1 may round up to the total: the last token with any probability.
    last = jnp.where(possible, places, 0).max(axis=-1)
    return jnp.where(temperature == 0, jnp.argmax(log_probs, axis=-1), jnp.minimum(drawn, last))
