"""Thinking budgets against a plain loop over one row, and inside the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.sampling import budgets
from reasoning.sampling.budgets import Budget
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import pad_prompts, sample, sequence_keys

END, EOS, WAIT = 1, 2, 3
STEPS = 12


def plain(drawn, max_thinking, waits, end_ids, wait_ids):
    """What a policy that draws these tokens writes under a budget: one row, written plainly."""
    written, thought, forced, thinking = [], 0, [], True
    for token in drawn:
        if thinking and thought == max_thinking:
            forced, thinking = list(end_ids), False
        elif thinking and not forced and token in (END, EOS) and waits:
            forced, waits = list(wait_ids), waits - 1
        token = forced.pop(0) if forced else token
        thinking = thinking and token != END
        thought += thinking
        written.append(token)
    return written


def enforced(drawn, budget):
    """The same for rows `[B, STEPS]` by the compiled rule."""
    state, written = budgets.start(budget), []
    for t in range(STEPS):
        token = jnp.asarray(drawn[:, t], jnp.int32)
        token, state = budgets.enforce(budget, state, token, token == EOS)
        written.append(token)
    return np.stack(written, axis=1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([END, EOS, 5, 6, 7]), min_size=STEPS, max_size=STEPS),
             min_size=4, max_size=4),
    st.lists(st.integers(0, STEPS), min_size=4, max_size=4),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
    st.sampled_from([(END,), (8, END), (8, END, 9)]),
    st.sampled_from([(WAIT,), (WAIT, 4)]),
)
def test_budgets_are_the_plain_rule(drawn, most, waits, end_ids, wait_ids):
    budget = Budget(jnp.array(most)[:, None], jnp.array(waits)[:, None], END, end_ids, wait_ids)
    expected = [plain(*row, end_ids, wait_ids) for row in zip(drawn, most, waits)]
    np.testing.assert_array_equal(enforced(np.array(drawn), budget), expected)


def test_by_hand():
    drawn = [5, 6, END, 7, EOS, 5, 6, 7, 5, 6, 7, 5]
    assert plain(drawn, 99, 0, (END,), ())[:5] == [5, 6, END, 7, EOS]
    assert plain(drawn, 1, 0, (8, END), ())[:5] == [5, 8, END, 7, EOS]
    assert plain(drawn, 99, 1, (END,), (WAIT,))[:5] == [5, 6, WAIT, 7, EOS]
    assert plain(drawn, 0, 2, (END,), (WAIT,))[:3] == [END, 6, END]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_thinking": jnp.array([[-1]])}, "max_thinking=-1: must be 0 or above"),
        ({"end_ids": (8,)}, "must hold end_id=1"),
        ({"waits": jnp.array([[1]])}, "waits need the ids of a continuation"),
        ({"waits": jnp.array([[1]]), "wait_ids": (END,)}, "without end_id"),
    ],
)
def test_budgets_that_cannot_be_kept(changes, message):
    fields = {"max_thinking": jnp.array([[4]]), "waits": jnp.array([[0]]), "end_id": END,
              "end_ids": (END,)}
    with pytest.raises(ValueError, match=message):
        Budget(**{**fields, **changes}).check()


# In the sampler


def draw(config, params, max_thinking, waits, wait_ids=(WAIT,)):
    """Samples of two prompts, four each, under budgets `[4]`."""
    ids, mask = pad_prompts([[5, 6, 7], [9, 12, 3, 20]], 0)
    # Ids that this policy likes to write end its thinking and its completion.
    counts = (jnp.tile(jnp.array(x), (2, 1)) for x in (max_thinking, waits))
    budget = Budget(*counts, end_id=17, end_ids=(17, 4), wait_ids=wait_ids)
    keys = jnp.broadcast_to(sequence_keys(jax.random.key(0), jnp.arange(2), 1), (2, 4))
    return jax.tree.map(np.asarray, sample(
        params, ids, mask, np.zeros((2, 4), np.int32), keys, Filters(2.0, top_k=12), config=config,
        max_new_tokens=10, stop_ids=(EOS,), pad_id=0, budget=budget,
    ))


def test_equal_keys_share_their_thinking(config, params):
    samples = draw(config, params, [0, 2, 4, 9], [0, 0, 0, 0])
    tokens = samples.tokens.reshape(2, 4, 10)
    for p in range(2):
        for g, thinking in enumerate((0, 2, 4)):
            ended = np.flatnonzero(np.isin(tokens[p, 3], (17, EOS)))
            kept = min([thinking, *(ended - 1)])
            assert (tokens[p, g, : 1 + kept] == tokens[p, 3, : 1 + kept]).all()
            if kept == thinking:
                assert tokens[p, g, 1 + kept : 3 + kept].tolist() == [17, 4]
    assert np.isfinite(samples.log_probs).all() and (samples.log_probs > -1e3).all()


def test_what_a_budget_writes_is_scored_by_the_policy(config, params, forward):
    samples = draw(config, params, [0, 0, 0, 0], [0, 0, 0, 0])
    row = np.zeros((1, 16), np.int32)
    row[0, :6] = [5, 6, 7, *samples.tokens[0, :3]]
    log_probs = jax.nn.log_softmax(np.asarray(forward(config, params, row))[0])
    assert samples.tokens[0, 1:3].tolist() == [17, 4]
    expected = [log_probs[3, 17], log_probs[4, 4]]
    np.testing.assert_allclose(samples.log_probs[0, 1:3], expected, atol=1e-4)
