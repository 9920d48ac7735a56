"""The contract of rewards: its helpers, and what `check_verdicts` refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.data.tasks import TASKS, make_task
from reasoning.rewards.verdicts import (
    REASONS,
    Completions,
    Verdicts,
    check_shapes,
    check_verdicts,
    ended,
    reason_id,
    reward_name,
    shortened,
)


def verdicts(reward=(1.0, 0.0), reason=(0, 4)):
    return Verdicts(np.array(reward, np.float32), np.array(reason, np.int32))


def test_every_reason_has_one_id():
    assert [reason_id(reason) for reason in REASONS] == list(range(len(REASONS)))
    with pytest.raises(ValueError, match="reason='cut_off': must be one of correct, wrong_value"):
        reason_id("cut_off")


@pytest.mark.parametrize("name", TASKS)
def test_reasons_hold_those_of_every_task(name):
    task = make_task(name)
    problem = task.sample(0, 0)
    answers = [None, "", "0", "answer", "1 + 1 = 2", task.trace(problem, "left").answer
               if "left" in task.strategies else "1 + 1 = 2 , 1 + 1 = 2"]
    for answer in answers:
        reason_id(task.verify(problem, answer).reason)


def test_ended_looks_at_the_last_token_inside_the_mask():
    tokens = np.array([[9, 5, 2, 0], [9, 5, 6, 2], [9, 2, 5, 6], [9, 5, 2, 2], [2, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    assert ended(Completions(tokens, mask), (2,)).tolist() == [True, True, False, False, True]
    assert ended(Completions(tokens[:1], ~mask[:1]), (0,)).tolist() == [True]
    assert ended(Completions(tokens[:1], mask[:1] & False), (0,)).tolist() == [False]


def test_sound_verdicts_pass():
    check_verdicts(verdicts(), None, "f")
    check_verdicts(verdicts(), ["a", "b"], "f")
    check_verdicts(Verdicts(jnp.zeros(2), jnp.zeros(2, jnp.int32)), None, "f")
    check_verdicts(verdicts((), ()), [], "f")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_named(value):
    with pytest.raises(ValueError, match=r"^my_reward: completion 1 \('7 \* 5'\) has reward -?"):
        check_verdicts(verdicts((1.0, value)), ["a", "7 * 5"], "my_reward")
    with pytest.raises(ValueError, match=r"^my_reward: completion 0 has reward"):
        check_verdicts(verdicts((value, 1.0)), None, "my_reward")


@pytest.mark.parametrize("reason", [-1, len(REASONS)])
def test_an_unknown_reason_is_named(reason):
    last = len(REASONS) - 1
    with pytest.raises(ValueError, match=rf"^f: completion 1 .* reason {reason}; .* 0..{last}"):
        check_verdicts(verdicts(reason=(0, reason)), None, "f")


@pytest.mark.parametrize(
    ("reward", "reason", "field"),
    [
        (np.zeros((2, 1), np.float32), np.zeros(2, np.int32), r"reward is float32\[2, 1\]"),
        (np.zeros(3, np.float32), np.zeros(3, np.int32), r"reward is float32\[3\]"),
        (np.zeros((), np.float32), np.zeros(2, np.int32), r"reward is float32\[\]"),
        (np.zeros(2), np.zeros(2, np.int32), r"reward is float64\[2\]"),
        (np.zeros(2, np.float32), np.zeros(1, np.int32), r"reason is int32\[1\]"),
        (np.zeros(2, np.float32), np.zeros(2, np.int64), r"reason is int64\[2\]"),
    ],
)
def test_a_wrong_shape_or_dtype_is_named(reward, reason, field):
    with pytest.raises(ValueError, match=rf"^f: {field}; return (float|int)32\[2\]"):
        check_verdicts(Verdicts(reward, reason), ["a", "b"], "f")


def test_a_wrong_shape_is_seen_without_texts():
    with pytest.raises(ValueError, match=r"reward is float32\[2, 1\]"):
        check_verdicts(Verdicts(np.zeros((2, 1), np.float32), np.zeros(2, np.int32)), None, "f")


def test_a_wrong_shape_is_seen_while_tracing():
    def judge(reward, reason):
        check_shapes(Verdicts(reward, reason), 2, "f")
        return reward

    floats, ints = jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    jax.eval_shape(judge, floats, ints)
    wide = jax.ShapeDtypeStruct((2, 1), jnp.float32)
    with pytest.raises(ValueError, match=r"^f: reward is float32\[2, 1\]; return float32"):
        jax.eval_shape(judge, wide, ints)
    with pytest.raises(ValueError, match=r"^f: reason is float32\[2\]; return int32\[2\], one"):
        jax.eval_shape(judge, floats, floats)
    with pytest.raises(ValueError, match=r"^f: reward is list\[2\]; return float32\[2\], one"):
        check_shapes(Verdicts([1.0, 0.0], np.zeros(2, np.int32)), 2, "f")


def test_a_reward_is_called_by_its_name():
    class Judge:
        def __call__(self, prompts, completions, metadata): ...

    class Named(Judge):
        name = "mine"

    names = {
        "check_verdicts": check_verdicts, "Judge": Judge(), "mine": Named(),
        "shortened": functools.partial(functools.partial(shortened, limit=3)),
        "ended": jax.jit(ended),
    }
    assert {name: reward_name(reward) for name, reward in names.items()} == {n: n for n in names}


def test_long_texts_are_cut_in_the_middle():
    assert shortened("a\nb") == r"'a\nb'"
    text = shortened("a" * 500 + "b" * 500)
    assert len(text) < 100 and text.startswith("'aaa") and text.endswith("bbb'")
