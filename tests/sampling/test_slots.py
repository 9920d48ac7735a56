"""Sampling in fewer rows than sequences: the samples are those of the plain loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.runtime.meshes import MeshShape, make_mesh, use_mesh
from reasoning.sampling.budgets import Budget
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, STOP_EOS, pad_prompts, sample, sequence_keys
from reasoning.sampling.slots import sample_in_slots, sampler_for

PAD, NEW = 0, 10
IDS, MASK = pad_prompts([[5, 6, 7], [1, 9, 12, 3, 20, 28], [13, 13, 4, 21]], PAD)
TAGS = np.tile(np.array([0, 1, 2, OWN_TAG], np.int32), (3, 3))
KEYS = sequence_keys(jax.random.key(3), jnp.arange(3), 12)
STOPS = (2, 6, 11, 14, 19)  # many, so that lengths differ
KINDS = [
    {}, {"scan_layers": True}, {"position_encoding": "rope", "num_kv_heads": 1},
    {"windows": (4, 0)}, {"strategy_ids": (20, 22, 24)},
]


def draw(how, config, params, filters=Filters(), stop_ids=STOPS, **settings):  # noqa: B008
    static = dict(max_new_tokens=NEW, stop_ids=stop_ids, pad_id=PAD)
    return jax.tree.map(
        np.asarray,
        how(params, IDS, MASK, TAGS, KEYS, filters, config=config, **static, **settings),
    )


def assert_same(found, expected):
    for field in ("tokens", "mask", "tags", "stop_reason"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), field)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=2e-5)


@pytest.mark.parametrize("change", KINDS, ids=str)
def test_samples_are_those_of_the_plain_loop(config, rough_params, change):
    config = dataclasses.replace(config, **change)
    params = rough_params(config)
    expected = draw(sample, config, params)
    lengths = expected.mask.sum(axis=1)
    assert len(np.unique(lengths)) > 4 and 0 < (expected.stop_reason == STOP_EOS).mean() < 1
    for num_slots in (5, 12):
        assert_same(draw(sample_in_slots, config, params, num_slots=num_slots), expected)


@pytest.mark.parametrize("num_slots", [1, 2, 35, 36])
def test_any_number_of_slots_gives_the_same(config, params, num_slots):
    expected = draw(sample, config, params)
    assert_same(draw(sample_in_slots, config, params, num_slots=num_slots), expected)


@pytest.mark.parametrize("filters", [Filters(0.0), Filters(0.7, top_k=9, top_p=0.8)], ids=str)
def test_filters_and_greedy_decoding_are_those_of_the_plain_loop(config, params, filters):
    expected = draw(sample, config, params, filters)
    assert_same(draw(sample_in_slots, config, params, filters, num_slots=7), expected)


def test_where_none_stops_every_row_is_written_to_its_end(config, params):
    expected = draw(sample, config, params, stop_ids=(10_000,))
    found = draw(sample_in_slots, config, params, stop_ids=(10_000,), num_slots=7)
    assert found.mask.all()
    assert_same(found, expected)


def test_more_rows_than_sequences_are_refused(config, params):
    for num_slots in (0, 37):
        with pytest.raises(ValueError, match=rf"^num_slots={num_slots}: must be between 1 and "):
            draw(sample_in_slots, config, params, num_slots=num_slots)


def mesh_of(devices, **shape):
    return use_mesh(make_mesh(MeshShape(**shape), jax.devices()[:devices]))


def test_slots_are_for_fewer_rows_than_sequences():
    fewer = sampler_for(3, 3, 8, early_exit=False)
    assert fewer.func is sample_in_slots and fewer.keywords == {"num_slots": 8}
    plain = [sampler_for(3, 3, rows, early_exit=False) for rows in (9, 10, None)]
    for mesh in (mesh_of(3, fsdp=3), mesh_of(3, tensor=3), mesh_of(2, data=2), mesh_of(3, data=3)):
        with mesh:  # which cuts parameters, does not divide the prompts, leaves a device 3 rows
            plain.append(sampler_for(3, 3, 3, early_exit=False))
    with mesh_of(3, data=3):
        assert sampler_for(3, 3, 2).func is sample_in_slots
    for each in plain:
        assert each.func is sample and each.keywords == {"early_exit": False}


@pytest.mark.parametrize("shape", [{"data": 3}, {"replica": 3}], ids=str)
def test_devices_of_a_mesh_sample_apart(config, rough_params, shape):
    config = dataclasses.replace(config, scan_layers=True)
    params = rough_params(config)
    expected = draw(sample, config, params)
    lengths = expected.mask.sum(axis=1).reshape(3, 12)
    assert len(np.unique(lengths.sum(axis=1))) == 3  # their loops end at different steps
    with mesh_of(3, **shape):
        assert_same(draw(sample, config, params), expected)
        assert_same(draw(sample_in_slots, config, params, num_slots=5), expected)
        with pytest.raises(ValueError, match=r"^num_slots=13: .* the 12 sequences of a device"):
            draw(sample_in_slots, config, params, num_slots=13)
    more = dict(
        ranks=np.tile(np.array([-1, 2], np.int32), (3, 6)), with_gaps=True,
        budget=Budget(np.full((3, 12), 3), np.full((3, 12), 1), 9, (9, 8), (7,)),
    )
    expected = draw(sample, config, params, **more)
    with mesh_of(3, **shape):
        found = draw(sample, config, params, **more)
    assert_same(found, expected)
    np.testing.assert_allclose(found.gaps, expected.gaps, atol=2e-5)
    with mesh_of(3, fsdp=3), pytest.raises(ValueError, match=r"^num_slots=5: on a mesh that cuts "):
        draw(sample_in_slots, config, params, num_slots=5)
