"""Traces to tags: the assignment against brute force, its costs against single rows, the arms."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from reasoning.data.pipelines import Example, TraceBatch, collate
from reasoning.learning import assignment

ROWS, WIDTH, PREFIX, MATCH = 9, 16, 9, 3
jit_match = jax.jit(assignment.match)


def make_examples():
    """Problems of 3, 1, 2 and 2 traces, prompts of 3 to 5 tokens, traces of 1 to 9."""
    rng = np.random.default_rng(0)
    lengths = [(5, (9, 6, 4)), (3, (5,)), (4, (1, 8)), (3, (2, 6))]
    return [
        Example(
            tuple(rng.integers(3, 29, prompt).tolist()),
            tuple(tuple(rng.integers(3, 29, n).tolist()) for n in traces),
        )
        for prompt, traces in lengths
    ]


BATCH = collate(make_examples(), WIDTH, [0, 1, 2, 3], ROWS, pad_id=0)  # one row is padding
costs_of = jax.jit(assignment.matching_costs, static_argnums=(0, 3, 4, 5))
assign = functools.partial(assignment.assign, num_traces=3, prefix=PREFIX, match_tokens=MATCH)


# The assignment


def test_match_known_value():
    costs = jnp.array([[1.0, 0.9, 1.2], [0.8, 0.85, 1.5]])
    tags = assignment.match(costs)
    np.testing.assert_array_equal(tags, [1, 0])
    assert costs[jnp.arange(2), tags].sum() == pytest.approx(1.7)


def brute_force(costs):
    """The least total cost over all injections of rows into columns."""
    injections = itertools.permutations(range(costs.shape[1]), costs.shape[0])
    return min(sum(costs[row, tag] for row, tag in enumerate(tags)) for tags in injections)


@pytest.mark.parametrize("shape", [(1, 3), (3, 3), (2, 4), (4, 5)], ids=str)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_match_is_the_cheapest_injection(shape, data):
    # Eighths are exact in float32, and few enough for ties.
    eighths = st.integers(-8, 24).map(lambda n: n / 8)
    costs = data.draw(st_numpy.arrays(np.float32, shape, elements=eighths))
    tags = np.asarray(jit_match(costs))
    assert len(set(tags.tolist())) == shape[0] and set(tags.tolist()) <= set(range(shape[1]))
    assert costs[np.arange(shape[0]), tags].sum() == brute_force(costs)


def test_permuting_traces_and_tags_permutes_the_answer_at_the_same_cost():
    rng = np.random.default_rng(0)
    for _ in range(10):
        costs = rng.random((3, 5), dtype=np.float32)
        rows, columns = rng.permutation(3), rng.permutation(5)
        tags = np.asarray(jit_match(costs))
        moved = np.asarray(jit_match(costs[rows][:, columns]))
        np.testing.assert_array_equal(columns[moved], tags[rows])
        paid = costs[rows][:, columns][np.arange(3), moved].sum()
        assert paid == pytest.approx(costs[np.arange(3), tags].sum(), rel=1e-6)


@pytest.mark.parametrize("num_tags", [3, 5])
def test_match_rows_gives_the_traces_that_exist_their_own_best_tags(num_tags):
    match_rows = jax.jit(assignment.match_rows, static_argnums=2)
    rng = np.random.default_rng(num_tags)
    for _ in range(5):
        costs = rng.random((ROWS, num_tags), dtype=np.float32) - 0.5  # below the cost of no trace
        order = rng.permutation(ROWS)  # rows may stand in any order
        batch = jax.tree.map(lambda x, order=order: x[order], BATCH)
        tags = np.asarray(match_rows(costs, batch, 3))
        for problem in range(4):
            rows = np.flatnonzero((batch.lengths > 0) & (batch.problem == problem))
            assert len(set(tags[rows].tolist())) == len(rows)
            paid = costs[rows, tags[rows]].sum()
            assert paid == pytest.approx(brute_force(costs[rows]), abs=1e-6)


# The costs


def reference_costs(forward, config, params, batch):
    """Mean NLL of each row's first MATCH trace tokens, one row and tag at a time."""
    costs = np.zeros((ROWS, config.num_strategies))
    for row, tag in np.ndindex(costs.shape):
        fork, length = batch.fork[row], batch.lengths[row]
        if length:
            tokens = batch.tokens[row].copy()
            tokens[fork] = config.vocab_size + tag
            log_probs = jax.nn.log_softmax(forward(config, params, tokens[None])[0])
            places = range(fork + 1, min(fork + 1 + MATCH, length))
            costs[row, tag] = -np.mean([log_probs[t - 1, tokens[t]] for t in places])
    return costs


def test_matching_costs_are_those_of_single_rows(config, params, forward):
    costs = costs_of(config, params, BATCH, PREFIX, MATCH)
    expected = reference_costs(forward, config, params, BATCH)
    np.testing.assert_allclose(costs, expected, atol=1e-5)
    assert np.ptp(expected[:8], axis=1).min() > 0.01  # tags matter to every trace
    longer = costs_of(config, params, BATCH, WIDTH, MATCH)  # a longer prefix shows nothing more
    np.testing.assert_allclose(longer, costs, atol=1e-5)


@pytest.mark.parametrize("change", [{}, {"scan_layers": True}, {"position_encoding": "rope"},
                                    {"num_kv_heads": 1}, {"windows": (3, 0)},
                                    {"strategy_ids": (3, 9, 27)}], ids=str)
@pytest.mark.parametrize("match_tokens", [1, MATCH, 100])
def test_costs_with_prompts_read_once_are_those_of_every_row(
    config, rough_params, change, match_tokens
):
    config = dataclasses.replace(config, **change)
    params, prefix = rough_params(config), 6 + match_tokens
    alone = costs_of(config, params, BATCH, prefix, match_tokens)
    for num_problems in (4, 7):
        shared = costs_of(config, params, BATCH, prefix, match_tokens, num_problems)
        np.testing.assert_allclose(shared, alone, atol=2e-6)
    order = np.random.default_rng(0).permutation(ROWS)  # rows may stand in any order
    moved = jax.tree.map(lambda x: x[order], BATCH)
    shared = costs_of(config, params, moved, prefix, match_tokens, 4)
    np.testing.assert_allclose(shared, alone[order], atol=2e-6)


def test_no_gradient_flows_through_the_costs(config, params):
    def total(params):
        return assignment.matching_costs(config, params, BATCH, PREFIX, MATCH).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert value > 0
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0 * leaf), gradient)


def matched(config, params, batch):
    tags, metrics = assign("matched", config, params, batch, jax.random.key(0))
    return np.asarray(tags), metrics


def scramble(batch, first, last, seed):
    """Other tokens from `first` to before `last`, counted from the fork, inside each row."""
    place = np.arange(WIDTH) - batch.fork[:, None]
    inside = (place >= first) & (place < last) & (np.arange(WIDTH) < batch.lengths[:, None])
    other = np.random.default_rng(seed).integers(3, 29, batch.tokens.shape, dtype=np.int32)
    return batch.replace(tokens=np.where(inside, other, batch.tokens))


def test_only_the_first_tokens_of_a_trace_decide_its_tag(config, params):
    costs = costs_of(config, params, BATCH, PREFIX, MATCH)
    tags, _ = matched(config, params, BATCH)
    for seed in range(5):
        later = scramble(BATCH, 1 + MATCH, WIDTH, seed)
        assert (later.tokens != BATCH.tokens).any()
        np.testing.assert_array_equal(costs_of(config, params, later, PREFIX, MATCH), costs)
        np.testing.assert_array_equal(matched(config, params, later)[0], tags)
    changed = [
        matched(config, params, scramble(BATCH, 1, 1 + MATCH, seed))[0] for seed in range(5)
    ]
    assert any((other != tags)[BATCH.lengths > 0].any() for other in changed)


def test_padding_changes_neither_costs_nor_tags(config, params):
    outside = np.arange(WIDTH) >= BATCH.lengths[:, None]
    filled = BATCH.replace(tokens=np.where(outside, 17, BATCH.tokens))
    np.testing.assert_array_equal(
        costs_of(config, params, filled, PREFIX, MATCH),
        costs_of(config, params, BATCH, PREFIX, MATCH),
    )
    exists = BATCH.lengths > 0
    tags, metrics = matched(config, params, BATCH)
    other, filled_metrics = matched(config, params, filled)
    np.testing.assert_array_equal(tags[exists], other[exists])
    assert metrics == filled_metrics


def test_matched_pays_the_least_and_says_what(config, params):
    tags, metrics = matched(config, params, BATCH)
    costs = np.asarray(costs_of(config, params, BATCH, PREFIX, MATCH))[:8]
    problems = BATCH.problem[:8]
    least = sum(brute_force(costs[problems == problem]) for problem in range(4))
    assert costs[np.arange(8), tags[:8]].sum() == pytest.approx(least, rel=1e-5)
    assert metrics["matching_cost"] == pytest.approx(least / 8, rel=1e-5)
    assert 0 < metrics["matching_entropy"] < math.log(3)


def test_matching_entropy_is_between_0_and_that_of_all_tags():
    def entropy(costs):
        return float(assignment.matching_entropy(jnp.asarray(costs), BATCH, MATCH))

    assert entropy(np.full((ROWS, 4), 2.5)) == pytest.approx(math.log(4))
    assert entropy(np.where(np.arange(4) == 2, 0.0, 1e3) * np.ones((ROWS, 1))) == 0
    costs = np.random.default_rng(0).random((ROWS, 4))
    scored = np.minimum(np.asarray(BATCH.lengths) - np.asarray(BATCH.fork) - 1, MATCH)
    weights = np.exp(-np.maximum(scored, 0)[:, None] * costs)
    weights /= weights.sum(axis=1, keepdims=True)
    expected = -(weights * np.log(weights)).sum(axis=1)[:8].mean()
    assert entropy(costs) == pytest.approx(expected, rel=1e-5)
    costs[8] = 1e6  # a row of padding
    assert entropy(costs) == pytest.approx(expected, rel=1e-5)


# The arms


def test_mixed_and_fixed(config):
    for arm, expected in (("mixed", np.zeros(ROWS)), ("fixed", BATCH.slot)):
        tags, metrics = assign(arm, config, None, BATCH, jax.random.key(0))
        np.testing.assert_array_equal(tags, expected)
        assert metrics == {}


def pairs(count):
    """A batch of `count` problems of two traces each; only what `random_injection` reads."""
    problem = np.repeat(np.arange(count, dtype=np.int32), 2)
    slot = np.tile(np.arange(2, dtype=np.int32), count)
    return TraceBatch(None, None, None, problem, slot, problem.astype(np.uint32))


draw_injection = jax.jit(assignment.random_injection, static_argnums=1)


def test_random_injections_are_uniform_and_of_the_problem():
    batch = pairs(1200)
    tags = np.asarray(draw_injection(batch, 3, jax.random.key(0))).reshape(-1, 2)
    assert (tags[:, 0] != tags[:, 1]).all()
    counts = np.unique(tags, axis=0, return_counts=True)[1]
    assert len(counts) == 6 and scipy.stats.chisquare(counts).pvalue > 1e-3

    # The same at another place of another batch, row by row.
    order = np.random.default_rng(0).permutation(2400)
    moved = jax.tree.map(lambda x: x[order], batch)
    moved = moved.replace(problem=moved.problem[::-1])
    again = np.asarray(draw_injection(moved, 3, jax.random.key(0)))
    np.testing.assert_array_equal(again, tags.reshape(-1)[order])

    other = np.asarray(draw_injection(batch, 3, jax.random.key(1))).reshape(-1, 2)
    same = (other == tags).all(axis=1).mean()  # a sixth by chance
    assert 0.12 < same < 0.22


def test_random_draws_by_the_key(config):
    first, again, other = (
        np.asarray(assign("random", config, None, BATCH, jax.random.key(seed))[0])
        for seed in (0, 0, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    for problem in range(4):
        rows = first[:8][BATCH.problem[:8] == problem]
        assert len(set(rows.tolist())) == len(rows)


def test_tags_are_written_at_the_fork_alone(config):
    tags = jnp.arange(ROWS) % 3
    tokens = np.asarray(assignment.with_tags(config, BATCH, tags))
    at_fork = np.arange(WIDTH) == BATCH.fork[:, None]
    np.testing.assert_array_equal(tokens[at_fork], 29 + np.arange(ROWS) % 3)
    np.testing.assert_array_equal(tokens[~at_fork], BATCH.tokens[~at_fork])


@pytest.mark.parametrize("arm", assignment.ARMS)
def test_an_arm_needs_a_tag_for_every_trace(arm):
    assignment.check_arm(arm, num_traces=4, num_strategies=4)
    if arm == "mixed":
        assignment.check_arm(arm, num_traces=5, num_strategies=4)
        return
    message = rf"^arm='{arm}': gives .* num_strategies=4 must be at least the 5 traces\.$"
    with pytest.raises(ValueError, match=message):
        assignment.check_arm(arm, num_traces=5, num_strategies=4)


def test_an_unknown_arm_is_refused():
    message = r"^arm='hungarian': must be one of mixed, random, fixed, matched\.$"
    with pytest.raises(ValueError, match=message):
        assignment.check_arm("hungarian", 1, 1)
