"""Judging steps: numbers as answers, and steps that may be meant in several places."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.data.tasks.steps import (
    MAX_READINGS,
    count_dots,
    longest_opening,
    share_as_expected,
    valid_steps,
    verify_number,
)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("7", "correct"),
        ("0", "wrong_value"),
        ("12", "wrong_value"),
        ("13", "malformed"),
        (None, "no_answer"),
        ("", "no_answer"),
        ("07", "malformed"),
        ("-7", "malformed"),
        ("+7", "malformed"),
        ("7.0", "malformed"),
        ("7 7", "malformed"),
        (" 7", "malformed"),
        ("7\n", "malformed"),
        ("٧", "malformed"),
        ("７", "malformed"),
        ("²", "malformed"),
        ("0x7", "malformed"),
        ("1_2", "malformed"),
        ("9" * 100_000, "malformed"),
    ],
)
def test_verdicts_on_numbers(answer, reason):
    assert verify_number(answer, expected=7, largest=12).reason == reason


@given(st.integers(0, 999), st.integers(0, 999), st.text(max_size=4))
def test_only_the_expected_number_is_correct(expected, other, text):
    assert verify_number(str(expected), expected, 999).correct
    assert verify_number(str(other), expected, 999).correct == (other == expected)
    assert verify_number(text, expected, 999).correct == (text == str(expected))


def test_share_as_expected():
    assert share_as_expected([], []) == 1.0
    assert share_as_expected([], ["a"]) == 0.0
    assert share_as_expected(["a"], []) == 0.0
    assert share_as_expected(["a"], ["a", "b"]) == 1.0
    assert share_as_expected(["a", "c", "b"], ["a", "b"]) == pytest.approx(1 / 3)
    assert share_as_expected(["x", "b"], ["a", "b"]) == 0.5  # at its place, whatever came before


def remove(state, text):
    """A toy: a step names a letter of the word and takes one of them away."""
    for place, letter in enumerate(state):
        if letter == text:
            yield state[:place] + state[place + 1 :]


def test_a_step_is_valid_as_often_as_it_applies():
    assert valid_steps("abab", "abab", remove) == [True] * 4
    assert valid_steps("abab", "aabbb", remove) == [True] * 4 + [False]
    assert valid_steps("ab", "xab", remove) == [False, True, True]  # goes on from where it was
    assert valid_steps("ab", "", remove) == []


def cut(state, text):
    """A toy: a step names a letter of the word, and leaves what stands behind it."""
    return (state[place + 1 :] for place, letter in enumerate(state) if letter == text)


def test_a_step_may_be_meant_in_several_places():
    assert valid_steps("abac", "ab", cut) == [True, True]  # the first a
    assert valid_steps("abac", "ac", cut) == [True, True]  # either
    assert valid_steps("abac", "aba", cut) == [True] * 3
    assert valid_steps("abac", "acb", cut) == [True, True, False]  # no a has both behind it


def test_readings_are_bounded():
    widths = []

    def double(state, text):
        widths.append(state)
        return (2 * state, 2 * state + 1)

    assert valid_steps(1, ["step"] * 20, double) == [True] * 20
    assert len(widths) < 20 * MAX_READINGS


def test_longest_opening():
    assert longest_opening({"left": 2, "right": 0, "tree": 1}) == "left"
    assert longest_opening({"left": 2, "right": 2}) is None
    assert longest_opening({"left": 0, "right": 0}) is None


def test_dots_are_counted_from_the_start():
    assert [count_dots(text.split()) for text in ("", ".", ". . x .", "x . .")] == [0, 1, 2, 0]
