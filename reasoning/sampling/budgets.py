"""Thinking budgets: end the thinking after so many tokens, or make it go on, inside the sampler.

Thinking is what a policy writes after its tag until it ends it: with the word `answer` in a task,
with `</think>` in a chat format. A budget writes the end itself when the tokens are used up
(truncation, T1 2501.11651), and a continuation in place of the end when it comes too soon (budget
forcing, s1 2501.19393). What it writes is scored like any other token.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Budget:
    """How long each completion may think, in tokens after the tag.

    Attributes:
      max_thinking: `[P, G]` int32; after so many the end is forced. 0 asks for the answer at once.
      waits: `[P, G]` int32; so many of the policy's first attempts to end its thinking, or its
        completion, are replaced by the continuation, while the thinking fits its budget.
      end_id: the id by which the policy itself ends its thinking.
      end_ids: the ids written to end it by force, `end_id` among them.
      wait_ids: the ids written to make it go on, without `end_id`; () where `waits` is 0.
    """

    max_thinking: jax.Array
    waits: jax.Array
    end_id: int = flax.struct.field(pytree_node=False)
    end_ids: tuple[int, ...] = flax.struct.field(pytree_node=False)
    wait_ids: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())

    def check(self) -> "Budget":
        """Refuse a budget that cannot be kept.

        Raises:
          ValueError: negative counts, an end that does not end, or waits without a continuation.
        """
        for name in ("max_thinking", "waits"):
            least = int(jnp.min(getattr(self, name)))
            if least < 0:
                raise ValueError(f"{name}={least}: must be 0 or above.")
        if self.end_id not in self.end_ids:
            raise ValueError(
                f"end_ids={self.end_ids}: must hold end_id={self.end_id}, which ends the thinking."
            )
        if int(jnp.max(self.waits)) > 0 and (not self.wait_ids or self.end_id in self.wait_ids):
            raise ValueError(
                f"wait_ids={self.wait_ids}: waits need the ids of a continuation, without end_id."
            )
        return self


@flax.struct.dataclass
class BudgetState:
    """Where B rows stand, each `[B]`.

    Attributes:
      thinking: bool, the end has not been written.
      thought: int32, tokens of thinking written so far.
      waits: int32, continuations that are still to be written.
      ending: int32, how many of `end_ids` are written by force; -1: none is being.
      waiting: int32, the same of `wait_ids`.
    """

    thinking: jax.Array
    thought: jax.Array
    waits: jax.Array
    ending: jax.Array
    waiting: jax.Array


def start(budget: Budget) -> BudgetState:
    """The state of all P * G rows before their first token after the tag."""
    rows = budget.max_thinking.size
    none = jnp.full(rows, -1, jnp.int32)
    return BudgetState(
        thinking=jnp.ones(rows, bool),
        thought=jnp.zeros(rows, jnp.int32),
        waits=budget.waits.reshape(-1),
        ending=none,
        waiting=none,
    )


def enforce(
    budget: Budget, state: BudgetState, token: jax.Array, stops: jax.Array
) -> tuple[jax.Array, BudgetState]:
    """The tokens `[B]` that are written in place of those drawn, and the state after them.

    Args:
      token: `[B]` int32, what the policy has drawn.
      stops: `[B]` bool, where that would end the completion.
    """
    spent = state.thinking & (state.thought >= budget.max_thinking.reshape(-1))
    wants_end = state.thinking & ((token == budget.end_id) | stops)
    waits = wants_end & (state.waits > 0) & (state.waiting < 0) & ~spent
    # A budget that is used up comes before a continuation.
    waiting = jnp.where(spent, -1, jnp.where(waits, 0, state.waiting))
    token, ending = _write(budget.end_ids, jnp.where(spent, 0, state.ending), token)
    if budget.wait_ids:
        token, waiting = _write(budget.wait_ids, waiting, token)
    thinking = state.thinking & ~spent & (token != budget.end_id)
    return token, BudgetState(
        thinking=thinking,
        thought=state.thought + thinking,
        waits=state.waits - waits,
        ending=ending,
        waiting=waiting,
    )


def _write(ids: tuple[int, ...], place: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Write the id at each row's place, where it is not negative, and go on to the next place."""
    forced = jnp.asarray(ids, jnp.int32)[jnp.maximum(place, 0)]
    token = jnp.where(place >= 0, forced, token)
    after = jnp.where(place >= 0, place + 1, place)
    return token, jnp.where(after == len(ids), -1, after)
