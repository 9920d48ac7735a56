"""The policy against its formulas in plain numpy, and every way to run it against the plain one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from reasoning.models.cache import init_cache
from reasoning.models.config import PRESETS, ModelConfig, count_parameters, make_config
from reasoning.models.transformer import (
    Transformer,
    init_params,
    logical_axes,
    params_for_sampling,
)

ROPE = dict(position_encoding="rope", rope_theta=100.0)


# The formulas


def rms_norm(x, scale, epsilon):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def rotated(x, places, theta):
    """Component i and its partner half a head further, as a complex number turned by an angle."""
    half = x.shape[1] // 2
    angles = np.array([[p * theta ** (-i / half) for i in range(half)] for p in places])
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=1)


def attention(config, weights, x, segments, places):
    out = np.zeros_like(x)
    for head in range(config.num_heads):
        shared = head // (config.num_heads // config.num_kv_heads)  # neighbours share keys
        q, k = x @ weights["query"][:, head], x @ weights["key"][:, shared]
        v = x @ weights["value"][:, shared]
        if config.position_encoding == "rope":
            q, k = (rotated(part, places, config.rope_theta) for part in (q, k))
        for t in range(len(x)):
            seen = [s for s in range(t + 1) if segments[s] == segments[t]]
            scores = np.exp([q[t] @ k[s] / np.sqrt(config.head_dim) for s in seen])
            out[t] += scores / scores.sum() @ v[seen] @ weights["output"][head]
    return out


def reference(config, params, tokens, segment_ids, positions):
    """Logits `[B, T, V+S]` in float64, one row, head and token at a time."""
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["params"]
    embeddings = np.concatenate([weights["token_embedding"], weights["strategy_embedding"]])
    head = embeddings
    if not config.tied_head:
        head = np.concatenate([weights["token_head"], weights["strategy_head"]])
    rows = []
    for ids, segments, places in zip(tokens, segment_ids, positions, strict=True):
        x = embeddings[ids]
        if config.position_encoding == "learned":
            x = x + weights["position_embedding"][places]
        for layer in range(config.num_layers):
            block = weights[f"layer_{layer}"]
            y = rms_norm(x, block["attention_norm"]["scale"], config.norm_epsilon)
            x = x + attention(config, block["attention"], y, segments, places)
            y = rms_norm(x, block["feed_forward_norm"]["scale"], config.norm_epsilon)
            mlp = block["feed_forward"]
            gate = y @ mlp["gate"]
            x = x + (gate / (1 + np.exp(-gate)) * (y @ mlp["up"])) @ mlp["down"]
        rows.append(rms_norm(x, weights["final_norm"]["scale"], config.norm_epsilon) @ head.T)
    return np.stack(rows)


TOKENS = np.random.default_rng(1).integers(0, 32, (3, 10), dtype=np.int32)
TOKENS[:, 3] = 29, 30, 31  # every strategy
SEGMENTS = np.array([[1] * 10, [1] * 4 + [2] * 6, [0] * 2 + [1] * 5 + [0] * 3], np.int32)
POSITIONS = np.array(
    [range(10), [*range(4), *range(6)], [0, 0, *range(5), 0, 0, 0]], np.int32
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(num_kv_heads=4, tied_head=False),
        dict(num_kv_heads=1, norm_epsilon=0.1),
        ROPE,
        dict(num_kv_heads=1, tied_head=False, **ROPE),
        dict(num_kv_heads=4, num_layers=1, **ROPE),
    ],
    ids=str,
)
def test_logits_are_those_of_the_formulas(config, rough_params, forward, changes):
    config = dataclasses.replace(config, **changes)
    params = rough_params(config)
    logits = forward(config, params, TOKENS, SEGMENTS, POSITIONS)
    expected = reference(config, params, TOKENS, SEGMENTS, POSITIONS)
    assert logits.dtype == jnp.float32 and logits.shape == (3, 10, 32)
    assert expected.std() > 0.5  # not all alike
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, ROPE], ids=["learned", "rope"])
def test_segments_and_positions_default_to_one_row_from_zero(
    config, rough_params, forward, changes
):
    config = dataclasses.replace(config, **changes)
    params = rough_params(config)
    expected = reference(
        config, params, TOKENS, np.ones((3, 10), int), np.tile(np.arange(10), (3, 1))
    )
    np.testing.assert_allclose(forward(config, params, TOKENS), expected, atol=1e-4)


def test_rope_theta_is_used_and_only_distances_count(config, rough_params, forward):
    config = dataclasses.replace(config, **ROPE)
    params, ones = rough_params(config), np.ones_like(SEGMENTS)
    places = np.tile(np.arange(10, dtype=np.int32), (3, 1))
    logits = forward(config, params, TOKENS, ones, places)
    np.testing.assert_allclose(
        forward(config, params, TOKENS, ones, places + 17), logits, atol=1e-4
    )
    other = dataclasses.replace(config, rope_theta=1e6)
    assert np.abs(forward(other, params, TOKENS, ones, places) - logits).max() > 1e-2


def test_packed_rows_are_the_rows_apart(config, params, forward):
    logits = forward(config, params, TOKENS, SEGMENTS, POSITIONS)
    apart = np.zeros_like(TOKENS)
    apart[0, :4], apart[1, :6], apart[2, :5] = TOKENS[1, :4], TOKENS[1, 4:], TOKENS[2, 2:7]
    alone = forward(config, params, apart)  # padding comes after the tokens: it is not seen
    np.testing.assert_allclose(logits[1, :4], alone[0, :4], atol=1e-5)
    np.testing.assert_allclose(logits[1, 4:], alone[1, :6], atol=1e-5)
    np.testing.assert_allclose(logits[2, 2:7], alone[2, :5], atol=1e-5)


def test_a_token_sees_itself_and_what_comes_before_it_in_its_segment(config, rough_params):
    # With a head of its own, the token table is only read: d logits[t] / d embedding of token u.
    config = dataclasses.replace(config, tied_head=False)
    params = rough_params(config)
    tokens = np.arange(9, dtype=np.int32)[None]
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]], np.int32)

    @jax.jit
    @jax.jacrev
    def influence(table):
        weights = {"params": {**params["params"], "token_embedding": table}}
        logits, _ = Transformer(config).apply(weights, tokens, segment_ids=segments)
        return (logits[0] ** 2).sum(axis=-1)

    moved = np.abs(influence(params["params"]["token_embedding"]))[:, :9].max(axis=-1)  # [t, u]
    same = segments[0][:, None] == segments[0]
    np.testing.assert_array_equal(moved > 0, np.tril(same))


# Other ways to run the same function


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(config, params, tokens):
    weights = np.random.default_rng(2).normal(size=(*tokens.shape, config.output_size))

    def value(params):
        logits, _ = Transformer(config).apply(params, tokens)
        return jnp.mean(logits * jnp.asarray(weights, jnp.float32))

    return jax.value_and_grad(value)(params)


def assert_trees_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


@pytest.fixture(scope="module")
def plain(config, params):
    return value_and_gradient(config, params, TOKENS)


@pytest.mark.parametrize(
    "remat, scan", [("none", True), ("full", True), ("full", False), ("dots", False)]
)
def test_scan_and_remat_change_neither_value_nor_gradient(
    config, params, plain, stack_layers, remat, scan
):
    other = dataclasses.replace(config, remat=remat, scan_layers=scan)
    value, gradient = plain
    if scan:
        params, gradient = stack_layers(params), stack_layers(gradient)
    assert_trees_close(
        value_and_gradient(other, params, TOKENS), (value, gradient), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("scan", [True, False])
def test_remat_recomputes_as_much_as_it_says(config, params, stack_layers, scan):
    params = stack_layers(params) if scan else params

    def count_products(remat):
        other = dataclasses.replace(config, remat=remat, scan_layers=scan)
        return str(jax.make_jaxpr(value_and_gradient, static_argnums=0)(
            other, params, TOKENS
        )).count("dot_general[")

    none, dots, full = map(count_products, ("none", "dots", "full"))
    assert none < dots < full  # both compute attention's scores again


@pytest.mark.parametrize(
    "changes",
    [{}, dict(position_encoding="rope", tied_head=False), dict(norm_offset=True, qkv_bias=True)],
    ids=str,
)
def test_weights_that_are_rounded_once_compute_the_same_to_the_last_bit(
    config, rough_params, changes
):
    narrow = dataclasses.replace(config, dtype="bfloat16", **changes)
    params = rough_params(narrow)
    rounded = params_for_sampling(narrow, params)
    sizes = [x.nbytes for x in jax.tree.leaves(rounded["params"]["layer_0"]["feed_forward"])]
    assert sum(sizes) == 2 * 3 * config.d_model * config.d_ff
    tokens = jnp.arange(12).reshape(2, 6)
    score = jax.jit(lambda params: Transformer(narrow).apply(params, tokens)[0])
    np.testing.assert_array_equal(score(rounded), score(params))


def test_bfloat16_computes_close_to_float32_and_scores_in_float32(config, params, forward):
    narrow = dataclasses.replace(config, dtype="bfloat16")
    logits, expected = forward(narrow, params, TOKENS), forward(config, params, TOKENS)
    assert logits.dtype == jnp.float32
    error = np.abs(logits - expected)
    assert 1e-4 < error.max() < 0.25 and error.mean() < 0.02


@pytest.mark.parametrize("num_scored", [1, 3])
def test_num_scored_scores_the_last_positions(config, params, forward, num_scored):
    apply = jax.jit(functools.partial(Transformer(config).apply, num_scored=num_scored))
    logits, cache = apply(params, TOKENS)
    assert logits.shape == (3, num_scored, 32) and cache is None
    expected = forward(config, params, TOKENS)[:, -num_scored:]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_without_the_head_the_hidden_states_come_out(config, params, forward):
    hidden, _ = Transformer(config).apply(params, TOKENS, head=False)
    tables = [params["params"][name] for name in ("token_embedding", "strategy_embedding")]
    logits = hidden @ jnp.concatenate(tables).T
    np.testing.assert_allclose(logits, forward(config, params, TOKENS), atol=1e-5)


# The cache


@functools.partial(jax.jit, static_argnums=0)
def extend(config, params, tokens, cache, segment_ids=None, positions=None):
    return Transformer(config).apply(
        params, tokens, cache=cache, segment_ids=segment_ids, positions=positions
    )


@pytest.mark.parametrize("changes", [{}, dict(scan_layers=True, **ROPE)], ids=["loop", "scan"])
def test_decoding_with_a_cache_is_the_full_forward_pass(
    config, rough_params, stack_layers, forward, changes
):
    config = dataclasses.replace(config, **changes)
    params = rough_params(dataclasses.replace(config, scan_layers=False))
    if config.scan_layers:
        params = stack_layers(params)
    expected = forward(config, params, TOKENS)

    for chunks in ([1] * 10, [4, 4, 1, 1]):  # token by token, and in chunks
        cache, parts, start = init_cache(config, 3, 12), [], 0  # more slots than tokens
        for size in chunks:
            logits, cache = extend(config, params, TOKENS[:, start : start + size], cache)
            parts.append(logits)
            start += size
        assert cache.length == 10
        np.testing.assert_array_equal(cache.segment_ids, [[1] * 10 + [0] * 2] * 3)
        np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-5)

    # Rows of 10, 8 and 7 tokens: the first 4, 2 and 1 are read at once, padded on the left.
    short = np.array([4, 2, 1])
    mask = (np.arange(4) >= 4 - short[:, None]).astype(np.int32)
    prompts = np.where(mask, np.stack([np.roll(TOKENS[i], 4 - n)[:4] for i, n in
                                       enumerate(short)]), 7)
    places = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    logits, cache = extend(config, params, prompts, init_cache(config, 3, 12), mask, places)
    np.testing.assert_allclose(logits[:, -1], expected[np.arange(3), short - 1], atol=1e-5)
    for t in range(6):
        here = short + t
        token = TOKENS[np.arange(3), here][:, None]
        logits, cache = extend(
            config, params, token, cache, np.ones((3, 1), np.int32), here[:, None]
        )
        np.testing.assert_allclose(logits[:, 0], expected[np.arange(3), here], atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, dict(num_kv_heads=1, attention_softcap=2.0), dict(windows=(4, 0), **ROPE),
     dict(scan_layers=True, **ROPE)],
    ids=str,
)
def test_rows_that_share_what_stands_before_them_are_the_full_forward_pass(
    config, rough_params, stack_layers, forward, changes
):
    """Two rows after each of two prompts, one of them padded: read at once, then by a cache."""
    config = dataclasses.replace(config, **changes)
    params = rough_params(dataclasses.replace(config, scan_layers=False))
    if config.scan_layers:
        params = stack_layers(params)
    prompts, own = TOKENS[:2, :4], np.random.default_rng(2).integers(0, 32, (4, 5), dtype=np.int32)
    mask = np.array([[1, 1, 1, 1], [0, 1, 1, 1]], np.int32)
    places = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    _, before = extend(config, params, prompts, init_cache(config, 2, 4), mask, places)
    expected = [
        forward(config, params, np.concatenate([prompts[i // 2, i // 2 :], own[i]])[None])[0, -5:]
        for i in range(4)
    ]
    with pytest.raises(ValueError, match=r"^prefix: .* pass positions\."):
        Transformer(config).apply(params, own, prefix=before)
    places = np.array([4, 4, 3, 3])[:, None] + np.arange(5)
    after = jax.jit(functools.partial(Transformer(config).apply, params, prefix=before))
    logits, cache = after(own, positions=places)
    assert cache is None
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    cache, parts = init_cache(config, 4, 6), []
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        part, cache = after(own[:, start:stop], positions=places[:, start:stop], cache=cache)
        parts.append(part)
    assert cache.length == 5
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-5)


def test_a_cache_longer_than_the_model_is_refused(config):
    assert init_cache(config, 1, 32).segment_ids.shape == (1, 32)
    with pytest.raises(ValueError, match=r"^num_slots=33: longer than .*max_length=32; .*\.$"):
        init_cache(config, 1, 33)


# Parameters


@pytest.fixture(scope="module")
def stacked_config(config):
    return dataclasses.replace(config, tied_head=False, scan_layers=True)


@pytest.fixture(scope="module")
def initialise(stacked_config):
    return jax.jit(functools.partial(init_params, stacked_config))


def test_gradient_reaches_every_parameter_at_random_init(stacked_config, initialise):
    tokens = np.arange(32, dtype=np.int32)[None]  # every id, in every place
    _, gradient = value_and_gradient(stacked_config, initialise(jax.random.key(0)), tokens)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.any(leaf != 0), path
    for name, leaf in gradient["params"]["layers"]["feed_forward"].items():
        assert np.mean(leaf != 0, axis=(1, 2)).min() > 0.99, name


def test_init_is_a_function_of_the_key_and_layers_differ(stacked_config, initialise):
    first, again, other = (initialise(jax.random.key(seed)) for seed in (0, 0, 1))
    assert count_parameters(stacked_config) == sum(leaf.size for leaf in jax.tree.leaves(first))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    query = first["params"]["layers"]["attention"]["query"]
    assert query.shape == (2, 16, 4, 4)
    assert np.all(query[0] != query[1])
    assert np.all(query != other["params"]["layers"]["attention"]["query"])
    assert np.std(query) == pytest.approx(16**-0.5, rel=0.1)


def shapes_of(config):
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


@pytest.mark.parametrize("preset", PRESETS)
def test_count_parameters_is_the_size_of_the_tree_and_every_axis_has_a_name(preset):
    config = make_config(preset, vocab_size=1000, num_strategies=6)
    shapes, axes = shapes_of(config), logical_axes(config)
    assert count_parameters(config) == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    specs = jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), spec in zip(leaves, specs, strict=True):
        assert leaf.dtype == jnp.float32
        assert len(spec) == leaf.ndim and all(isinstance(name, str) for name in spec), path
        assert (spec[0] == "layers") == ("layers" in str(path)), path


def test_count_parameters_of_an_initialised_preset():
    config = make_config("0.1m", vocab_size=300)
    params = init_params(config, jax.random.key(0))
    assert count_parameters(config) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_count_parameters_known_values():
    # Qwen2.5's published sizes without the biases of query, key and value, which we do not have.
    small = make_config("1.5b", vocab_size=151_936 - 4)
    assert count_parameters(small) == 1_543_714_304 - 28 * (12 + 2 + 2) * 128
    large = make_config("7b", vocab_size=152_064 - 4)
    assert count_parameters(large) == 7_615_616_512 - 28 * (28 + 4 + 4) * 128


# Mistakes


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_heads=6, num_kv_heads=4), "num_kv_heads=4: must divide num_heads=6."),
        (dict(head_dim=5, position_encoding="rope"),
         "head_dim=5: rotary positions need an even width."),
        (dict(position_encoding="alibi"), "position_encoding='alibi': must be one of learned, "),
        (dict(remat="some"), "remat='some': must be one of none, full, dots."),
        (dict(dtype="float16"), "dtype='float16': must be one of float32, bfloat16."),
        (dict(num_layers=0), "num_layers=0: must be at least 1."),
        (dict(num_strategies=0), "num_strategies=0: must be at least 1."),
        (dict(vocab_size=-1), "vocab_size=-1: must be at least 1."),
    ],
    ids=str,
)
def test_an_impossible_shape_is_refused_in_one_sentence(changes, message):
    with pytest.raises(ValueError) as error:
        ModelConfig(**{"vocab_size": 10, **changes})
    assert str(error.value).startswith(message)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_an_odd_head_is_allowed_without_rope():
    assert ModelConfig(vocab_size=10, head_dim=5).head_dim == 5


def test_unknown_presets_and_fields_are_refused():
    with pytest.raises(ValueError, match=r"^preset='9m': must be one of 0\.01m, .*, 7b\.$"):
        make_config("9m", vocab_size=10)
    with pytest.raises(ValueError, match=r"^depth: no such field of ModelConfig; it has vocab_s"):
        make_config("0.1m", vocab_size=10, depth=3)


def test_rows_beyond_the_position_table_are_refused():
    config = make_config("0.1m", vocab_size=10, d_model=16, d_ff=16, max_length=4)
    with pytest.raises(ValueError, match="max_length=4: the rows have 5 tokens"):
        jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))
