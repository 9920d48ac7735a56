"""Fused attention against the plain form: values and gradients, and where each is chosen."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from reasoning.models import attention
from reasoning.models.config import ModelConfig
from reasoning.models.transformer import Transformer
from reasoning.runtime.meshes import MeshShape, make_mesh, use_mesh


@pytest.fixture
def interpreted(monkeypatch):
    """The TPU's kernel, run by an interpreter."""
    name = "make_splash_mha_single_device"
    make = getattr(splash_attention, name)
    monkeypatch.setattr(splash_attention, name, partial(make, interpret=True))


def rows(length, width=8, heads=4, num_kv=2, batch=2):
    """Random q, k, v, segments of a padded, packed batch with their mask, and a weighting."""
    rng = np.random.default_rng(0)
    q, weighting = rng.normal(size=(2, batch, length, heads, width)).astype(np.float32)
    k, v = rng.normal(size=(2, batch, num_kv, length, width)).astype(np.float32)
    cuts = length // 3, length - length // 5
    places = np.arange(length)
    segments = np.where(places < cuts[0], 1, np.where(places < cuts[1], 2, 0)).astype(np.int32)
    segments = np.stack([segments, np.ones(length, np.int32)] * (batch // 2))
    mask = (segments[:, :, None] == segments[:, None]) & (places[:, None] >= places)
    return (q, k, v), segments, mask, weighting


def values_and_gradients(function, arrays, weighting):
    read = jax.jit(function)(*arrays)
    gradients = jax.jit(
        jax.grad(lambda *a: jnp.sum(function(*a) * weighting), argnums=(0, 1, 2))
    )(*arrays)
    return read, *gradients


def check_equal(function, cap=None, **sizes):
    arrays, segments, mask, weighting = rows(**sizes)
    plain = values_and_gradients(
        lambda q, k, v: attention.attend(q, k, v, mask, 0.3, cap), arrays, weighting
    )
    found = values_and_gradients(
        lambda q, k, v: function(q, k, v, segments, mask), arrays, weighting
    )
    for ours, theirs in zip(found, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("length", [20, 64, 90])
def test_jaxs_own_function_is_the_plain_form(length):
    check_equal(
        lambda q, k, v, segments, mask: attention.fused(q, k, v, mask, 0.3, "xla"), length=length
    )


def test_a_shared_prefix_is_rounded_as_the_plain_form():
    (q, k, v), _, _, _ = rows(length=90)
    mask = np.ones((2, 90, 90), bool)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    exact = attention.attend(*(x.astype(jnp.float32) for x in (q, k, v)), mask, 0.3, None)
    prefix = k[:, :, :40], v[:, :, :40]
    shared = attention.attend_with_prefix(q, k[:, :, 40:], v[:, :, 40:], prefix, mask, 0.3, None)
    plain = attention.attend(q, k, v, mask, 0.3, None)
    assert shared.dtype == plain.dtype == jnp.bfloat16
    error, expected = (float(jnp.std(x.astype(jnp.float32) - exact)) for x in (shared, plain))
    assert 0 < error < 1.01 * expected


@pytest.mark.parametrize(
    ("length", "width", "num_kv", "cap"),
    [(128, 128, 2, None), (40, 8, 1, None), (256, 64, 4, 2.0)],
)
def test_the_tpus_kernel_is_the_plain_form(interpreted, length, width, num_kv, cap):
    check_equal(
        lambda q, k, v, segments, mask: attention.splash(q, k, v, segments, 0.3, cap),
        cap=cap, length=length, width=width, num_kv=num_kv,
    )


def test_the_tpus_kernel_on_a_mesh_is_the_plain_form(interpreted):
    mesh = make_mesh(MeshShape(data=2, tensor=2), jax.devices()[:4])
    with use_mesh(mesh):
        check_equal(
            lambda q, k, v, segments, mask: attention.splash(q, k, v, segments, 0.3, None),
            length=128,
        )


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_policy_scores_alike_by_the_kernel(interpreted, config, rough_params, scan_layers):
    config = dataclasses.replace(config, scan_layers=scan_layers)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 20))
    segments = np.repeat([[1] * 9 + [2] * 8 + [0] * 3], 2, axis=0)
    params = rough_params(config)

    def score(config):
        return Transformer(config).apply(params, tokens, segment_ids=jnp.asarray(segments))[0]

    by_kernel = jax.jit(score, static_argnums=0)(dataclasses.replace(config, attention="splash"))
    np.testing.assert_allclose(by_kernel, score(config), atol=2e-4)


@pytest.mark.parametrize(
    ("backend", "changes", "kernel"),
    [
        ("cpu", {}, "plain"),
        ("tpu", {}, "splash"),
        ("tpu", dict(windows=(4, 0)), "plain"),
        ("tpu", dict(attention="plain"), "plain"),
        ("gpu", dict(dtype="bfloat16", head_dim=8), "cudnn"),
        ("gpu", dict(head_dim=8), "plain"),
        ("gpu", dict(dtype="bfloat16", head_dim=8, attention_softcap=5.0), "plain"),
        ("gpu", dict(dtype="bfloat16", head_dim=12), "plain"),
        ("gpu 10.0", dict(dtype="bfloat16", head_dim=8), "cudnn"),
        ("gpu 7.5", dict(dtype="bfloat16", head_dim=8), "plain"),
        ("gpu gfx942", dict(dtype="bfloat16", head_dim=8), "plain"),
    ],
)
def test_the_kernel_is_the_backends_where_it_can(config, monkeypatch, backend, changes, kernel):
    backend, _, capability = backend.partition(" ")
    device = SimpleNamespace(compute_capability=capability or "8.0")
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    config = dataclasses.replace(config, **changes)
    assert attention.attention_kernel(config, 256) == kernel
    assert attention.attention_kernel(config, 255) == kernel
    assert attention.attention_kernel(config, 20) == "plain"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(attention="flash"), "attention='flash': must be one of auto, plain, cudnn, splash"),
        (dict(attention="splash", windows=(3, 0)), r"attention='splash': cannot do windows=\(3"),
        (dict(attention="cudnn"), "attention='cudnn': cannot do dtype='float32'"),
        (dict(attention="cudnn", dtype="bfloat16", head_dim=12), "'cudnn': cannot do head_dim=12"),
    ],
)
def test_a_kernel_that_cannot_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        ModelConfig(vocab_size=10, num_layers=2, **changes)
