"""What a reward is: the one contract that every reward function keeps.

    verdicts = reward(prompts, completions, metadata)

    prompts       `[B, T]` int32 ids, padded on the left
    completions   `Completions` of B rows
    metadata      what is known about the B problems: a pytree of arrays `[B, ...]` for rewards on
                  the device (`reasoning.rewards.device`), a list of B objects for rewards on the
                  host (`reasoning.rewards.host`)
    verdicts      `Verdicts` of B rows

Each row is judged by itself. B is prompts x samples, so problems are repeated for their samples.
Nothing can raise inside a compiled program: a reward that is not a number there skips the update
and is counted (`reward_nan`); `check_verdicts` on the same rows, outside of jit, names it.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# The reasons of every task's `verify`, and those of a completion as a whole.
REASONS = (
    "correct",
    "wrong_value",  # valid in every step, but not what was asked for
    "wrong_equation",
    "wrong_numbers",  # uses a number that is not there (any more)
    "no_answer",
    "malformed",
    "over_long",  # stopped by the length limit, before <eos>
    "repetition",
    "garbled",
    "scored",  # by a function that gives a number and no reason
    "skipped",  # by a function that has nothing to say about this row: it trains nothing
    # Of `reasoning.rewards.answers` and `symbolic`:
    "unbalanced",  # the last \\boxed{ never closes
    "too_long",  # an answer over the limits of length, depth or digits
    "ambiguous",  # several candidates, or a chain of relations
    "unparsed",  # no formula that the algebra can read
    "timeout",  # over the limit of time for one answer
    "crash",  # ended the worker that judged it, by memory or otherwise
)


@flax.struct.dataclass
class Completions:
    """What the policy wrote after each of B prompts.

    Attributes:
      tokens: `[B, N]` int32: the strategy tag, the text, <eos>, then padding. Ids from
        `tokenizer.vocab_size` on are strategy tags.
      mask: `[B, N]` bool: the completion's tokens, <eos> included; at least one in each row.
    """

    tokens: jax.Array
    mask: jax.Array


@flax.struct.dataclass
class Verdicts:
    """The judgement of B completions.

    Attributes:
      reward: `[B]` float32, finite.
      reason: `[B]` int32, index into REASONS.
    """

    reward: jax.Array
    reason: jax.Array


class TooManyFailures(RuntimeError):
    """The verifier fails on too many answers, whichever completions are judged next."""


RewardFn = Callable[[jax.Array, Completions, Any], Verdicts]


def reason_id(reason: str) -> int:
    """The index of a reason in REASONS.

    Raises:
      ValueError: there is no such reason.
    """
    if reason not in REASONS:
        raise ValueError(f"reason={reason!r}: must be one of {', '.join(REASONS)}.")
    return REASONS.index(reason)


def ended(completions: Completions, stop_ids: Sequence[int]) -> jax.Array:
    """Whether the last token of each completion is one that ends it: `[B]` bool."""
    last = completions.mask.shape[1] - 1 - jnp.argmax(completions.mask[:, ::-1], axis=1)
    token = jnp.take_along_axis(completions.tokens, last[:, None], axis=1)[:, 0]
    stopped = functools.reduce(operator.or_, (token == i for i in stop_ids))
    return stopped & completions.mask.any(axis=1)


def shortened(text: str, limit: int = 80) -> str:
    """A text as an error message quotes it: its representation, cut in the middle."""
    half = limit // 2
    return repr(text) if len(text) <= limit else repr(f"{text[:half]} ... {text[-half:]}")


def reward_name(reward: Callable[..., Any]) -> str:
    """What error messages call a reward: its `name`, or that of the function or class."""
    if isinstance(reward, functools.partial):
        return reward_name(reward.func)
    return getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__)


def check_shapes(verdicts: Verdicts, count: int, name: str) -> None:
    """Refuse verdicts of a wrong shape or dtype; also under jit, where it raises while tracing.

    Args:
      verdicts: of one batch.
      count: B, the completions that were judged.
      name: of the reward function.

    Raises:
      ValueError: reward is not float32 `[B]`, or reason not int32 `[B]`.
    """
    for field, dtype in (("reward", np.float32), ("reason", np.int32)):
        array = getattr(verdicts, field)
        given = getattr(array, "dtype", type(array).__name__)
        if np.shape(array) != (count,) or given != dtype:
            raise ValueError(
                f"{name}: {field} is {given}{list(np.shape(array))}; return "
                f"{np.dtype(dtype)}[{count}], one entry per completion."
            )


def check_verdicts(verdicts: Verdicts, completions: Sequence[str] | None, name: str) -> None:
    """Refuse verdicts that do not keep the contract; for concrete arrays, not under jit.

    Args:
      verdicts: of one batch.
      completions: the B texts that were judged, for the error message; None if not at hand.
      name: of the reward function.

    Raises:
      ValueError: a wrong shape or dtype, a reward that is not finite, an unknown reason.
    """
    reward, reason = np.asarray(verdicts.reward), np.asarray(verdicts.reason)
    count = reward.size if completions is None else len(completions)
    check_shapes(Verdicts(reward, reason), count, name)
    wrong = ~np.isfinite(reward) | (reason < 0) | (reason >= len(REASONS))
    for i in np.flatnonzero(wrong):
        text = "" if completions is None else f" ({shortened(completions[i])})"
        raise ValueError(
            f"{name}: completion {i}{text} has reward {reward[i]} and reason {reason[i]}; rewards "
            f"must be finite and reasons lie in 0..{len(REASONS) - 1}."
        )
