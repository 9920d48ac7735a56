"""Distillation: divergences against numpy, known values and finite differences, and the update."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasoning.data.pipelines import Example, collate
from reasoning.learning.distillation import KINDS, Divergence, distill_update, token_divergence
from reasoning.learning.updates import init_state, label_mask

RNG = np.random.default_rng(0)
STUDENT, TEACHER = 2 * RNG.normal(size=(2, 4, 5, 6))
P, Q = np.array([0.5, 0.5]), np.array([0.25, 0.75])


def reference(divergence, student, teacher):
    """The divergence of logits `[..., V]` in float64, entry by entry."""
    tau, out = divergence.temperature, np.zeros(student.shape[:-1])
    for index in np.ndindex(out.shape):
        q, p = (np.exp(logits[index] / tau) for logits in (student, teacher))
        q, p = q / q.sum(), p / p.sum()
        m = divergence.mix * p + (1 - divergence.mix) * q
        out[index] = tau**2 * {
            "forward": np.sum(p * np.log(p / q)),
            "reverse": np.sum(q * np.log(q / p)),
            "jsd": divergence.mix * np.sum(p * np.log(p / m))
            + (1 - divergence.mix) * np.sum(q * np.log(q / m)),
        }[divergence.kind]
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature, mix", [(1.0, 0.5), (2.5, 0.2)])
def test_divergences_are_those_of_numpy(kind, temperature, mix):
    divergence = Divergence(kind, temperature, mix)
    found = token_divergence(divergence, jnp.asarray(STUDENT), jnp.asarray(TEACHER))
    np.testing.assert_allclose(found, reference(divergence, STUDENT, TEACHER), rtol=1e-4)
    assert (found > 0).all()


@pytest.mark.parametrize(
    "kind, value",
    [
        ("forward", 0.5 * np.log(2) + 0.5 * np.log(2 / 3)),
        ("reverse", 0.25 * np.log(0.5) + 0.75 * np.log(1.5)),
        ("jsd", 0.5 * (0.5 * np.log(0.5 / 0.375) + 0.5 * np.log(0.5 / 0.625))
         + 0.5 * (0.25 * np.log(0.25 / 0.375) + 0.75 * np.log(0.75 / 0.625))),
    ],
)
def test_known_values(kind, value):
    found = token_divergence(Divergence(kind), jnp.log(Q), jnp.log(P))
    assert found == pytest.approx(value, rel=1e-5)
    same = token_divergence(Divergence(kind), jnp.asarray(STUDENT), jnp.asarray(STUDENT) + 7.0)
    np.testing.assert_allclose(same, 0.0, atol=1e-6)


def test_distributions_apart_are_ln_2_in_the_jensen_shannon_divergence():
    apart = token_divergence(
        Divergence("jsd"), jnp.array([80.0, 0.0, 0.0]), jnp.array([0.0, 80.0, 0.0])
    )
    assert apart == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.parametrize("mix, scale, kind", [(1e-3, 1e-3, "forward"), (0.999, 1e-3, "reverse")])
def test_the_jensen_shannon_divergence_lies_between_the_two(mix, scale, kind):
    near, far = jnp.log(jnp.asarray(Q)), jnp.log(jnp.asarray(P))
    limit = token_divergence(Divergence(kind), near, far)
    found = token_divergence(Divergence("jsd", mix=mix), near, far) / scale
    assert found == pytest.approx(float(limit), rel=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    divergence = Divergence(kind, temperature=1.5, mix=0.3)

    def total(student):
        return token_divergence(divergence, student, jnp.asarray(TEACHER)).sum()

    gradient = np.asarray(jax.grad(total)(jnp.asarray(STUDENT)))
    for index in [(0, 0, 0), (3, 4, 5), (1, 2, 3)]:
        step = np.zeros(STUDENT.shape)
        step[index] = 1e-5
        up, down = (
            reference(divergence, STUDENT + sign * step, TEACHER).sum() for sign in (1, -1)
        )
        assert gradient[index] == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-5)


def test_forward_pulls_every_logit_by_the_difference_of_probabilities():
    gradient = jax.grad(lambda s: token_divergence(Divergence(), s, jnp.asarray(TEACHER)).sum())(
        jnp.asarray(STUDENT)
    )
    q, p = jax.nn.softmax(STUDENT), jax.nn.softmax(TEACHER)
    np.testing.assert_allclose(gradient, q - p, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_gets_no_gradient_and_halves_are_read_as_float32(kind):
    half = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHER, jnp.bfloat16)
    found = token_divergence(Divergence(kind), *half)
    assert found.dtype == jnp.float32
    exact = [np.asarray(x, np.float64) for x in half]
    np.testing.assert_allclose(found, reference(Divergence(kind), *exact), rtol=1e-4)
    gradient = jax.grad(lambda t: token_divergence(Divergence(kind), jnp.asarray(STUDENT), t).sum())
    np.testing.assert_array_equal(gradient(jnp.asarray(TEACHER)), np.zeros(TEACHER.shape))


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(kind="hard"), "divergence kind='hard': must be one of forward, reverse, jsd."),
        (dict(temperature=0.0), "divergence temperature=0.0"),
        (dict(kind="jsd", mix=1.0), "divergence mix=1.0"),
    ],
)
def test_divergences_that_are_none_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Divergence(**settings)


# The update

ROWS, WIDTH = 6, 12
EXAMPLES = [
    Example(tuple(RNG.integers(3, 29, n).tolist()), (tuple(RNG.integers(3, 29, m).tolist()),))
    for n, m in ((4, 7), (3, 2), (5, 5))
]
BATCH = collate(EXAMPLES, WIDTH, [0, 1, 2], ROWS, pad_id=0)  # three rows are padding
TAGS = np.array([1, 0, 2, 0, 0, 0], np.int32)
DESCENT = optax.sgd(1.0)  # the step is minus the gradient


@pytest.fixture(scope="module")
def teacher_config(config):
    return dataclasses.replace(config, d_model=24, num_layers=1)


@pytest.fixture(scope="module")
def teacher(teacher_config, rough_params):
    return rough_params(teacher_config, seed=1)


@pytest.fixture(scope="module")
def step(config, teacher_config, teacher):
    """`step(params, batch, tags, ...)`: the gradient and the metrics of one update."""

    def run(params, batch=BATCH, tags=TAGS, kind="forward", **settings):
        state, metrics = distill_update(
            init_state(params, DESCENT), teacher, batch, tags, config=config,
            teacher_config=teacher_config, optimizer=DESCENT, divergence=Divergence(kind),
            **settings,
        )
        return jax.tree.map(lambda before, after: before - after, params, state.params), metrics

    return run


@pytest.mark.parametrize("kind, tag_is_label", [("forward", True), ("reverse", False)])
def test_the_gradient_is_that_of_plain_autodiff(
    config, params, teacher_config, teacher, forward, step, kind, tag_is_label
):
    tokens = np.array(BATCH.tokens)
    tokens[np.arange(ROWS), BATCH.fork] = config.vocab_size + TAGS
    aim = forward(teacher_config, teacher, tokens)
    mask = np.array([
        [fork + (not tag_is_label) <= t < length for t in range(1, WIDTH)]
        for fork, length in zip(BATCH.fork, BATCH.lengths, strict=True)
    ])

    def loss(params):
        q, p = (jax.nn.log_softmax(x[:, :-1]) for x in (forward(config, params, tokens), aim))
        p, q = (p, q) if kind == "forward" else (q, p)
        return jnp.sum(jnp.where(mask, jnp.sum(jnp.exp(p) * (p - q), -1), 0.0)) / mask.sum()

    value, gradient = jax.value_and_grad(loss)(params)
    found, metrics = step(params, kind=kind, tag_is_label=tag_is_label)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics["tokens"] == mask.sum()
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), found, gradient)


def test_padding_changes_nothing(params, step):
    gradient, metrics = step(params)
    outside = np.arange(WIDTH) >= np.asarray(BATCH.lengths)[:, None]
    filled = BATCH.replace(tokens=np.where(outside, 17, BATCH.tokens))
    again, told = step(params, filled)
    jax.tree.map(np.testing.assert_array_equal, (again, told), (gradient, metrics))
    larger = collate(EXAMPLES, WIDTH + 4, [0, 1, 2], ROWS + 2, pad_id=0)
    wider, _ = step(params, larger, np.concatenate([TAGS, [0, 0]]).astype(np.int32))
    close = functools.partial(np.testing.assert_allclose, atol=2e-6)
    jax.tree.map(close, wider, gradient)


def test_a_student_that_is_its_teacher_stays(config, params):
    _, metrics = distill_update(
        init_state(params, DESCENT), params, BATCH, TAGS, config=config, teacher_config=config,
        optimizer=DESCENT, divergence=Divergence("reverse"),
    )
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["grad_norm"] < 1e-5
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))  # the teacher's


@pytest.mark.parametrize("kind", KINDS)
def test_steps_bring_the_student_to_the_teacher(config, params, teacher_config, teacher, kind):
    optimizer = optax.adam(1e-2)
    state, found = init_state(params, optimizer), []
    for _ in range(30):
        state, metrics = distill_update(
            state, teacher, BATCH, TAGS, config=config, teacher_config=teacher_config,
            optimizer=optimizer, divergence=Divergence(kind), tag_is_label=False,
        )
        found.append(float(metrics["divergence"]))
        assert metrics["divergence"] == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert found[-1] < 0.2 * found[0]
    assert metrics["tokens"] == label_mask(BATCH, False).sum() == 14
