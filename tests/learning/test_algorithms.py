"""Algorithms by name: every preset can be built, and what cannot work is refused."""

import dataclasses

import pytest

from reasoning.learning.advantages import ADVANTAGES
from reasoning.learning.algorithms import ALGORITHMS, Algorithm, make_algorithm
from reasoning.learning.losses import AGGREGATIONS, Surrogate
from reasoning.learning.rollouts import RolloutConfig


@pytest.mark.parametrize("preset", ALGORITHMS)
def test_every_preset_can_be_built_and_is_hashable(preset):
    algorithm = make_algorithm(preset)
    assert algorithm == ALGORITHMS[preset] and hash(algorithm) == hash(ALGORITHMS[preset])
    assert algorithm.advantage in ADVANTAGES and algorithm.aggregation in AGGREGATIONS
    assert algorithm.on_fork == preset.startswith("gfpo")
    changed = make_algorithm(preset, kl_coef=0.125, clip_high=7.0)
    assert changed.kl_coef == 0.125 and changed.surrogate.clip_high == 7.0
    back = dataclasses.replace(
        changed, kl_coef=algorithm.kl_coef,
        surrogate=dataclasses.replace(
            changed.surrogate, clip_high=algorithm.surrogate.clip_high
        ),
    )
    assert back == algorithm  # nothing else was changed, the preset itself least of all
    assert ALGORITHMS[preset] == algorithm != changed


def test_presets_differ():
    assert len(set(ALGORITHMS.values())) == len(ALGORITHMS)


def test_presets_known_by_their_papers():
    dapo, gspo, t1 = (ALGORITHMS[name] for name in ("dapo", "gspo", "t1"))
    assert (dapo.surrogate.clip_low, dapo.surrogate.clip_high) == (0.2, 0.28)
    assert dapo.kl_coef == 0 and dapo.aggregation == "token_mean"
    assert (gspo.surrogate.clip_low, gspo.surrogate.clip_high) == (3e-4, 4e-4)
    assert gspo.surrogate.level == "sequence" and ALGORITHMS["grpo"].kl_coef == 0.04
    assert (t1.kl_coef, t1.penalty, t1.kl_in_reward) == (2e-4, "before", True)
    assert make_algorithm("rloo", kind="cispo").surrogate == Surrogate(kind="cispo")


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(advantage="best"), "advantage='best': must be one of rloo, grpo"),
        (dict(advantage="pkpo"), "advantage='pkpo': needs advantage_k."),
        (dict(positions="tag"), "positions='tag': must be one of all, fork, fork_exact."),
        (dict(penalty="soft"), "penalty='soft': must be one of none, before, after."),
        (dict(kl_estimator="k4"), "kl_estimator='k4': must be one of k1, k2, k3."),
        (dict(aggregation="sum"), "aggregation='sum': must be one of token_mean,"),
        (dict(kl_coef=-0.1), "kl_coef=-0.1: must be 0 or above."),
        (dict(entropy_coef=-1), "entropy_coef=-1: must be 0 or above."),
        (dict(entropy_shaping=-1), "entropy_shaping=-1: must be 0 or above."),
        (dict(clip_cov=-1), "clip_cov=-1: must be 0 or above."),
        (dict(kl_cov=-1), "kl_cov=-1: must be 0 or above."),
        (dict(top_entropy=0.0), "top_entropy=0.0: must lie in (0, 1]."),
        (dict(top_entropy=1.5), "top_entropy=1.5: must lie in (0, 1]."),
        (dict(ema_decay=1.5), "ema_decay=1.5: must lie in [0, 1]."),
        (dict(gae_lambda=1.5), "gae_lambda=1.5: must lie in [0, 1]."),
        (dict(reset_every=0), "reset_every=0: must be at least 1."),
        (dict(ema_decay=0.9, reset_every=3), "ema_decay, reset_every: a reference follows one"),
        (dict(ema_decay=0.9), "ema_decay=0.9: has no effect with kl_coef=0, which keeps no"),
        (dict(reset_every=3), "reset_every=3: has no effect with kl_coef=0, which keeps no"),
        (dict(kl_coef=0.0, ema_decay=1.0), "ema_decay=1.0: has no effect with kl_coef=0,"),
        (
            dict(kl_coef=0.1, ema_decay=0.9, reset_every=3),
            "ema_decay, reset_every: a reference follows one",
        ),
        (dict(kl_in_reward=True), "kl_estimator='k3': in the reward it must be k1."),
        (
            dict(
                advantage="pass_at_k", advantage_k=2, kl_coef=0.1, kl_in_reward=True,
                kl_estimator="k1",
            ),
            "kl_in_reward=True: advantage='pass_at_k' needs rewards of 0 and 1;",
        ),
        (dict(positions="fork", critic=True), "positions='fork': critic and top_entropy need"),
        (
            dict(positions="fork_exact", top_entropy=0.2),
            "positions='fork_exact': critic and top_entropy need",
        ),
        *(
            (
                {"positions": "fork_exact", name: value},
                f"{name}={value}: positions='fork_exact' has no sampled tokens",
            )
            for name, value in (
                ("clip_cov", 0.1), ("kl_cov", 0.1), ("entropy_shaping", 0.4),
                ("mask_truncated", True),
            )
        ),
        (dict(positions="fork_exact", penalty="after"), "penalty='after': needs advantages by"),
        (dict(critic=True, penalty="after"), "penalty='after': needs advantages by group;"),
        (dict(advantage="reinforce_pp", penalty="after"), "penalty='after': needs advantages by"),
    ],
    ids=str,
)
def test_algorithms_that_cannot_work_are_refused(settings, message):
    for make in (Algorithm, lambda **fields: make_algorithm("rloo", **fields)):
        with pytest.raises(ValueError) as error:
            make(**settings)
        assert str(error.value).startswith(message) and str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    "overrides, rules",  # ema_decay and reset_every that are left of T1's 0.992 and None
    [
        ({}, (0.992, None)),
        (dict(kl_coef=0.1), (0.992, None)),
        (dict(kl_coef=0.0), (None, None)),
        (dict(ema_decay=0.5), (0.5, None)),
        (dict(reset_every=7), (None, 7)),
        (dict(ema_decay=None), (None, None)),
        (dict(ema_decay=None, reset_every=None), (None, None)),
        (dict(ema_decay=None, kl_coef=0.0), (None, None)),
    ],
    ids=str,
)
def test_an_override_replaces_the_presets_rule_of_the_reference(overrides, rules):
    algorithm = make_algorithm("t1", **overrides)
    assert (algorithm.ema_decay, algorithm.reset_every) == rules
    left = dataclasses.replace(
        algorithm, ema_decay=0.992, reset_every=None, kl_coef=ALGORITHMS["t1"].kl_coef
    )
    assert left == ALGORITHMS["t1"]  # everything else is the preset's


@pytest.mark.parametrize(
    "overrides, message",
    [
        (dict(ema_decay=0.5, reset_every=7), "ema_decay, reset_every: a reference follows one"),
        (dict(kl_coef=0.0, ema_decay=0.5), "ema_decay=0.5: has no effect with kl_coef=0"),
        (dict(kl_coef=0.0, reset_every=7), "reset_every=7: has no effect with kl_coef=0"),
    ],
    ids=str,
)
def test_overrides_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ValueError) as error:
        make_algorithm("t1", **overrides)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "preset, settings, message",
    [
        ("gpro", {}, "algorithm='gpro': must be one of rloo, grpo"),
        ("grpo", dict(epsilon=0.2), "epsilon: no such field of an algorithm; it has advantage,"),
        ("grpo", dict(surrogate=Surrogate()), "surrogate: no such field of an algorithm"),
        ("grpo", dict(kind="dpo"), "kind='dpo': must be one of clip,"),
        ("grpo", dict(clip_low=-0.1), "clip_low=-0.1, clip_high=0.2: must be 0 or above."),
        ("gspo", dict(kind="sapo"), "surrogate kind='sapo': sequence ratios and dual_clip"),
    ],
)
def test_presets_and_fields_that_do_not_exist_are_refused(preset, settings, message):
    with pytest.raises(ValueError) as error:
        make_algorithm(preset, **settings)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(temperature=0), "temperature=0: greedy samples"),
        (dict(temperature=-1.0), "temperature=-1.0: must be 0 (greedy) or above."),
        (dict(top_k=0), "top_k=0: must be at least 1, or None to keep all."),
        (dict(top_p=1.5), "top_p=1.5: must lie in (0, 1], or be None."),
        (dict(min_p=0.0), "min_p=0.0: must lie in (0, 1], or be None."),
        (dict(tags="all"), "tags='all': must be own or stratified."),
        (dict(num_samples=0), "num_samples=0: must be at least 1."),
        (dict(max_new_tokens=0), "max_new_tokens=0: must be at least 1."),
        (dict(overlong_buffer=0), "overlong_buffer=0: must be at least 1."),
        (dict(repetition_ngram=0), "repetition_ngram=0: must be at least 1."),
        (dict(repetition_count=1), "repetition_count=1: must be at least 2;"),
        (
            dict(overlong_weight=1.0, overlong_buffer=9, max_new_tokens=8),
            "overlong_buffer=9: must be at most max_new_tokens=8.",
        ),
    ],
    ids=str,
)
def test_rollouts_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        RolloutConfig(**settings)
    assert str(error.value).startswith(message)
