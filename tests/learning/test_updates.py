"""The update of supervised fine-tuning: its loss, its metrics, what it leaves alone, what it wins.

The last test is set-supervised fine-tuning in small: matched tags come to stand for one kind of
trace each, random tags do not.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasoning.data.pipelines import Example, collate, trace_batches
from reasoning.learning import assignment
from reasoning.learning.losses import REDUCTIONS
from reasoning.learning.optimizers import OptimizerConfig, make_optimizer
from reasoning.learning.updates import init_state, label_mask, sft_update
from reasoning.models.axes import rows_apart
from reasoning.models.strategies import spread_strategies
from reasoning.runtime.meshes import MeshShape, make_mesh, use_mesh

ADAMW, MUON = (
    make_optimizer(
        OptimizerConfig(name=name, learning_rate=1e-2, num_steps=1000, warmup_steps=1)
    )
    for name in ("adamw", "muon")
)
ROWS, WIDTH = 8, 12


def make_examples():
    """Problems of 2, 2 and 1 traces, rows of 6 to 12 tokens."""
    rng = np.random.default_rng(0)
    lengths = [(4, (7, 3)), (3, (4, 2)), (5, (6,))]
    return [
        Example(
            tuple(rng.integers(3, 29, prompt).tolist()),
            tuple(tuple(rng.integers(3, 29, n).tolist()) for n in traces),
        )
        for prompt, traces in lengths
    ]


EXAMPLES = make_examples()
BATCH = collate(EXAMPLES, WIDTH, [0, 1, 2], ROWS, pad_id=0)  # three rows are padding
TAGS = np.array([1, 0, 0, 1, 1, 0, 0, 0], np.int32)
LENGTHS = [12, 8, 8, 6, 12, 0, 0, 0]
FORKS = [4, 4, 3, 3, 5, 0, 0, 0]


def update(config, state, batch=BATCH, tags=TAGS, optimizer=ADAMW, **settings):
    return sft_update(state, batch, tags, config=config, optimizer=optimizer, **settings)


def host(tree):
    return jax.tree.map(np.array, tree)


@pytest.fixture(scope="module")
def config(config):
    """Two strategies, for all tests here: one program is compiled."""
    return dataclasses.replace(config, num_strategies=2)


@pytest.fixture(scope="module")
def params(config, rough_params):
    return rough_params(config)


@pytest.fixture(scope="module")
def nll(config, params, forward):
    """`[N, T-1]` from a plain forward pass; 0 outside of the rows."""
    tokens = np.array(BATCH.tokens)
    tokens[np.arange(ROWS), FORKS] = config.vocab_size + TAGS
    log_probs = jax.nn.log_softmax(forward(config, params, tokens)[:, :-1])
    nll = -np.take_along_axis(np.asarray(log_probs), tokens[:, 1:, None], axis=2)[..., 0]
    return np.where(np.arange(1, WIDTH) < np.array(LENGTHS)[:, None], nll, 0.0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("num_microbatches", [2, 8])
def test_microbatches_add_up_to_the_whole(config, params, reduction, num_microbatches):
    optimizer = optax.sgd(1.0)  # so that parameters show the gradient
    whole, parts = (
        update(
            config, init_state(params, optimizer), optimizer=optimizer, reduction=reduction,
            num_microbatches=count,
        )
        for count in (1, num_microbatches)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)


@pytest.mark.parametrize("num_microbatches", [1, 2, 8])
def test_devices_that_copy_the_parameters_add_up_to_one(config, params, num_microbatches):
    """With 8 parts of 8 rows they do not divide the parts, and go through them together."""
    optimizer = optax.sgd(1.0)
    settings = dict(optimizer=optimizer, num_microbatches=num_microbatches)
    alone = update(config, init_state(params, optimizer), **settings)
    with use_mesh(make_mesh(MeshShape(data=2), jax.devices()[:2])):
        assert rows_apart(ROWS, num_microbatches) == (0 if num_microbatches == 8 else 2)
        cut = update(config, init_state(params, optimizer), **settings)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cut, alone)


KINDS = [{}, {"position_encoding": "rope"}, {"windows": (3, 0)}]


@pytest.mark.parametrize(
    ("change", "num_microbatches"), [(KINDS[0], 1), (KINDS[1], 2), (KINDS[2], 2)], ids=str
)
def test_packed_rows_have_the_loss_and_gradient_of_rows_alone(
    config, rough_params, change, num_microbatches
):
    config = dataclasses.replace(config, **change)
    state = init_state(rough_params(config), optimizer := optax.sgd(1.0))
    # Rows of 12, 8, 8, 6 and 12 tokens in two sequences of 28.
    packed = BATCH.replace(
        sequence=np.array([0, 0, 1, 0, 1, 0, 0, 0], np.int32),
        offset=np.array([8, 0, 15, 22, 2, 0, 0, 0], np.int32),
    )
    for reduction in REDUCTIONS:
        settings = dict(optimizer=optimizer, reduction=reduction)
        alone = update(config, jax.tree.map(jnp.copy, state), **settings)
        together = update(
            config, jax.tree.map(jnp.copy, state), packed, packing=(2, 28),
            num_microbatches=num_microbatches, **settings,
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, together)


def test_labels_are_the_trace_and_the_tag_if_it_is_to_be_learned():
    for tag_is_label in (True, False):
        mask = np.asarray(label_mask(BATCH, tag_is_label))
        for row, (fork, length) in enumerate(zip(FORKS, LENGTHS, strict=True)):
            first = fork if tag_is_label else fork + 1
            labels = np.flatnonzero(mask[row]) + 1  # entry t belongs to token t + 1
            np.testing.assert_array_equal(labels, np.arange(first, length)[: max(length, 0)])
    difference = np.asarray(label_mask(BATCH, True)) - np.asarray(label_mask(BATCH, False))
    assert (difference.sum(axis=1) == (np.array(LENGTHS) > 0)).all()


@pytest.mark.parametrize(
    "settings",
    [
        dict(reduction="token_mean", tag_is_label=True),
        dict(reduction="set_sum", tag_is_label=False),
    ],
    ids=str,
)
def test_loss_and_metrics_are_those_of_a_plain_forward_pass(config, params, nll, settings):
    _, metrics = update(config, init_state(params, ADAMW), **settings)
    trace = np.array([
        [fork < t < length for t in range(1, WIDTH)]
        for fork, length in zip(FORKS, LENGTHS, strict=True)
    ])
    tag = np.arange(1, WIDTH) == np.array(FORKS)[:, None]
    labels = trace | tag if settings["tag_is_label"] else trace
    count = 3 if settings["reduction"] == "set_sum" else labels.sum()
    assert metrics["loss"] == pytest.approx(float(nll[labels].sum() / count), rel=1e-5)
    assert metrics["trace_nll"] == pytest.approx(float(nll[trace].mean()), rel=1e-5)
    assert metrics["tokens"] == labels.sum()
    np.testing.assert_allclose(metrics["tag_usage"], [2 / 5, 3 / 5], rtol=1e-6)
    assert np.isfinite(metrics["grad_norm"]) and metrics["grad_norm"] > 0


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon"])
def test_every_optimizer_lowers_the_loss_and_moves_all_parameters(config, params, optimizer):
    state = init_state(params, optimizer)
    state, first = update(config, state, optimizer=optimizer)  # warm-up: rate 0
    state, _ = update(config, state, optimizer=optimizer)
    moved = host(state.params)
    losses = []
    for _ in range(10):
        state, metrics = update(config, state, optimizer=optimizer)
        losses.append(float(metrics["loss"]))
    assert losses[0] < first["loss"]  # one step lowers it
    assert losses[-1] < losses[0] - 0.2
    assert int(state.step) == 12
    for path, before in jax.tree_util.tree_leaves_with_path(host(params)):
        after = moved
        for key in path:
            after = after[key.key]
        assert np.isfinite(after).all() and (after != before).any(), path


def test_padding_changes_nothing(config, params):
    state, metrics = update(config, init_state(params, ADAMW))
    state, _ = update(config, state)
    after = host(state.params)

    # Whatever stands in the padding, the result is the same to the bit.
    outside = np.arange(WIDTH) >= np.array(LENGTHS)[:, None]
    filled = BATCH.replace(tokens=np.where(outside, 17, BATCH.tokens))
    tags = np.where(np.array(LENGTHS) > 0, TAGS, 1)
    state, again = update(config, init_state(params, ADAMW), filled, tags)
    state, _ = update(config, state, filled, tags)
    jax.tree.map(np.testing.assert_array_equal, host(state.params), after)
    jax.tree.map(np.testing.assert_array_equal, again, metrics)

    # More of it changes no more than rounding.
    larger = collate(EXAMPLES, WIDTH + 4, [0, 1, 2], ROWS + 2, pad_id=0)
    tags = np.concatenate([TAGS, [0, 0]]).astype(np.int32)
    _, wider = update(config, init_state(params, ADAMW), larger, tags)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), wider, metrics)


def test_what_is_not_trained_gets_no_gradient(config, params):
    only = make_optimizer(
        OptimizerConfig(trained="strategies", warmup_steps=0, num_steps=9, clip_norm=1e9)
    )
    whole, of_all = update(config, init_state(params, only), optimizer=only)
    state, metrics = update(config, init_state(params, only), optimizer=only, trained="strategies")
    for ours, theirs in zip(*(jax.tree.leaves(x.params) for x in (state, whole)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    # After one step the first moment is a tenth of the gradient.
    moment = optax.tree.get(whole.opt_state, "mu")["params"]["strategy_embedding"]
    assert metrics["grad_norm"] == pytest.approx(10 * float(optax.tree.norm(moment)), rel=1e-4)
    assert metrics["grad_norm"] < 0.9 * of_all["grad_norm"]
    assert metrics["loss"] == pytest.approx(float(of_all["loss"]), rel=1e-6)


def test_a_state_owns_its_parameters_and_is_donated(config, params):
    before = host(params)
    state = init_state(params, ADAMW)
    new, _ = update(config, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, new)))
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert int(new.step) == 1


MATCHING = dict(num_traces=2, prefix=WIDTH, match_tokens=4)


def train(config, params, arm, seed, steps=6):
    """A short run as the launchers do it."""
    batches = trace_batches(
        EXAMPLES, rows=ROWS, buckets=[WIDTH], num_batches=steps, pad_id=0, seed=seed
    )
    state, usage = init_state(params, ADAMW), []
    for step, batch in enumerate(batches):
        tags, _ = assignment.assign(
            arm, config, state.params, batch, jax.random.fold_in(jax.random.key(seed), step),
            **MATCHING,
        )
        state, metrics = update(config, state, batch, tags)
        usage.append(np.asarray(metrics["tag_usage"]))
    return host(state.params), np.array(usage)


def test_two_runs_from_one_seed_are_equal_to_the_bit(config, params):
    first, usage = train(config, params, "random", seed=0)
    again, _ = train(config, params, "random", seed=0)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    np.testing.assert_allclose(usage.sum(axis=1), 1.0, rtol=1e-6)
    assert len(np.unique(usage, axis=0)) > 1  # other tags at every step
    other, _ = train(config, params, "random", seed=1)
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
    )


# Set-supervised fine-tuning, in small

KINDS = ((5, 6, 5, 6), (9, 8, 9, 8))  # two ways to go on, and nothing in the prompt to tell


def two_kinds():
    """32 problems with one trace of each kind, in either order."""
    rng = np.random.default_rng(0)
    return [
        Example((1, int(rng.integers(12, 29))), tuple(KINDS[k] for k in rng.permutation(2)))
        for _ in range(32)
    ]


@pytest.fixture(scope="module")
def separations(config, params):
    """By arm: what a trace of each kind costs under each tag at the end, `[kind, tag]`."""
    examples, found = two_kinds(), {}
    probe = collate([Example((1, 20), KINDS)], WIDTH, [0], ROWS, pad_id=0)
    costs_of = jax.jit(assignment.matching_costs, static_argnums=(0, 3, 4))
    for arm in ("matched", "random"):
        start = spread_strategies(params, jax.random.key(0), noise=0.3)
        state, key = init_state(start, ADAMW), jax.random.key(1)
        batches = trace_batches(
            examples, rows=ROWS, buckets=[WIDTH], num_batches=100, pad_id=0, seed=0
        )
        for step, batch in enumerate(batches):
            tags, _ = assignment.assign(
                arm, config, state.params, batch, jax.random.fold_in(key, step), **MATCHING
            )
            state, _ = update(config, state, batch, tags)
        found[arm] = np.asarray(costs_of(config, state.params, probe, WIDTH, 4))[:2]
    return found


def test_matched_tags_come_to_stand_for_one_kind_of_trace_each(separations):
    costs = separations["matched"]
    own = np.asarray(assignment.match(jnp.asarray(costs)))
    kinds = np.arange(2)
    assert (costs[kinds, own] < 0.05).all()  # its own kind is certain, the other all but excluded
    assert (costs[kinds, 1 - own] > costs[kinds, own] + 0.5).all()


def test_random_tags_do_not(separations):
    costs = separations["random"]
    # Each tag knows both kinds, and that either may come: ln 2 over four tokens.
    np.testing.assert_allclose(costs, np.log(2) / 4, atol=0.1)
