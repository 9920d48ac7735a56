"""Group words: the tables against numpy, the folds against one another, verdicts and traces."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.tasks.base import Trace, parse_completion
from reasoning.data.tasks.group_words import (
    DEGREES,
    FOLDS,
    GroupWords,
    elements,
    multiplication_table,
    split_steps,
)

ORDERS = {"S3": 6, "S4": 24, "S5": 120, "A5": 60, **{f"C{n}": n for n in range(2, 13)}}
GROUPS = pytest.mark.parametrize("group", DEGREES)
TASK = GroupWords("S3", length=4)
WORD = (3, 1, 4, 2)  # left: 3 1 = 5 5 4 = 2 2 2 = 0


@GROUPS
def test_tables_compose_permutations_from_left_to_right(group):
    images = np.array(elements(group))
    table = np.array(multiplication_table(group))
    assert images.shape == (ORDERS[group], DEGREES[group])
    assert (np.sort(images, axis=1) == np.arange(DEGREES[group])).all()
    # products[a, b, i] = images[b, images[a, i]]: the point i through a, then through b.
    products = images[np.arange(len(images))[None, :, None], images[:, None, :]]
    np.testing.assert_array_equal(images[table], products)


@GROUPS
def test_tables_are_those_of_a_group(group):
    table = np.array(multiplication_table(group))
    order = ORDERS[group]
    assert (table[0] == np.arange(order)).all() and (table[:, 0] == np.arange(order)).all()
    for lines in (table, table.T):  # closed, and every element has an inverse on both sides
        assert (np.sort(lines, axis=1) == np.arange(order)).all()
    a, b, c = np.random.default_rng(0).integers(0, order, (3, 5000))
    np.testing.assert_array_equal(table[table[a, b], c], table[a, table[b, c]])
    assert (table != table.T).any() == (group[0] != "C")  # whether the order of operands matters


@pytest.mark.parametrize("order", range(2, 13))
def test_cyclic_groups_are_rotations(order):
    """By brute force: all permutations that keep the circle of points, but do not mirror it."""
    points = range(order)
    rotations = [tuple((i + shift) % order for i in points) for shift in points]
    if order <= 7:
        neighbours = {(i, (i + 1) % order) for i in points}
        rotations = [p for p in itertools.permutations(points)
                     if {(p[a], p[b]) for a, b in neighbours} == neighbours]
    assert list(elements(f"C{order}")) == sorted(rotations)
    table = multiplication_table(f"C{order}")
    assert all(table[a][b] == (a + b) % order for a in points for b in points)


def test_a_product_in_a_cyclic_group_is_the_sum():
    task = GroupWords("C6", length=4)
    steps = {strategy: task.trace((5, 4, 0, 3), strategy).steps for strategy in ("left", "tree")}
    assert steps == {"left": "5 4 = 3 3 0 = 3 3 3 = 0", "tree": "5 4 = 3 0 3 = 3 3 3 = 0"}
    for index in range(50):
        word = task.sample(0, index)
        assert task.verify(word, str(sum(word) % 6)).correct


def test_the_elements_of_a5_are_the_even_permutations_of_s5():
    def sign(permutation):
        return round(np.linalg.det(np.eye(5)[list(permutation)]))

    assert [p for p in elements("S5") if sign(p) == 1] == list(elements("A5"))


@GROUPS
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_reduction_ends_in_the_composed_permutation(group, data):
    task = GroupWords(group)
    numbers = st.integers(0, ORDERS[group] - 1)
    word = tuple(data.draw(st.lists(numbers, min_size=2, max_size=12)))
    points = np.arange(DEGREES[group])
    for number in word:
        points = np.array(elements(group)[number])[points]
    traces = [task.trace(word, strategy) for strategy in task.strategies]
    practised = task.practice(word, data.draw(st.randoms(use_true_random=False)))
    traces.append(Trace(*parse_completion(practised)))
    for trace in traces:
        assert elements(group)[int(trace.answer)] == tuple(points)
        assert task.verify(word, trace.answer).reason == "correct"
    for trace in (*traces[1:4], traces[-1]):
        assert len(split_steps(trace.steps)) == len(word) - 1
        assert trace.steps.split()[-1] == trace.answer


def test_traces_by_hand():
    # In S3: 1 = (1 2), 2 = (0 1), 3 = 0->1->2->0, 4 = its inverse, 5 = (0 2).
    assert elements("S3") == tuple(itertools.permutations(range(3)))
    steps = {strategy: TASK.trace(WORD, strategy).steps for strategy in TASK.strategies}
    assert steps == {
        "direct": "",
        "left": "3 1 = 5 5 4 = 2 2 2 = 0",
        "right": "4 2 = 5 1 5 = 4 3 4 = 0",
        "tree": "3 1 = 5 4 2 = 5 5 5 = 0",
        "filler": ". . .",
    }
    assert TASK.prompt(WORD) == "3 1 4 2 :"
    assert TASK.trace(WORD, "direct").completion == "answer 0"


def test_an_odd_element_waits_for_the_next_level_of_the_tree():
    task = GroupWords("S3", length=5)
    assert task.trace((3, 1, 4, 2, 5), "tree").steps == "3 1 = 5 4 2 = 5 5 5 = 0 0 5 = 5"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("0", "correct"),
        ("1", "wrong_value"),
        ("5", "wrong_value"),
        (None, "no_answer"),
        ("", "no_answer"),
        ("6", "malformed"),  # S3 has 0..5
        ("00", "malformed"),
        ("-0", "malformed"),
        ("0 0", "malformed"),
        (" 0", "malformed"),
        ("0\n", "malformed"),
        ("٠", "malformed"),
        ("０", "malformed"),
        ("0.0", "malformed"),
        ("answer", "malformed"),
        ("9" * 100_000, "malformed"),
    ],
)
def test_verdicts(answer, reason):
    assert TASK.verify(WORD, answer).reason == reason


@pytest.mark.parametrize(
    ("steps", "strategy", "share"),
    [
        ("3 1 = 5 5 4 = 2 2 2 = 0", None, 1.0),
        ("1 4 = 2 3 2 = 1 1 2 = 3", None, 0.0),  # 1 4 is 5, and what follows is not there
        ("1 4 = 5 3 5 = 2 2 2 = 0", None, 1.0),  # a bracketing that no strategy takes
        ("1 4 = 5 3 5 = 2 2 2 = 0", "left", 1 / 3),  # its last step is also the left fold's
        ("3 4 = 0", None, 0.0),  # a true product of elements that are no neighbours
        ("1 3 = 2", None, 0.0),  # of neighbours in the wrong order
        ("3 1 = 5 3 1 = 5", None, 0.5),  # used up
        ("3 1 = 5", "left", 1.0),
        ("3 1 = 5 3 1 = 5", "left", 0.5),
        ("3 1 = 4 5 4 = 2", "left", 0.5),
        ("03 1 = 5", None, 0.0),
        ("٣ 1 = 5", None, 0.0),
        ("3 1 = 5 and so", None, 1 / 3),
        ("", "direct", 1.0),
        ("3 1 = 5", "direct", 0.0),
        ("", "left", 0.0),
        ("", None, 0.0),  # nothing shown earns nothing
        (". . .", None, 0.0),
        (". . .", "filler", 1.0),
        (". . . .", "filler", 0.75),
        (". . .", "tree", 0.0),
    ],
)
def test_check_trace(steps, strategy, share):
    assert TASK.check_trace(WORD, strategy, steps) == pytest.approx(share)


def test_check_trace_follows_operands_that_stand_in_several_places():
    word = (3, 1, 3, 1, 4)  # the first 3 1 = 5 may mean either pair
    for steps in ("3 1 = 5 5 3 = 1", "3 1 = 5 5 4 = 2", "3 1 = 5 3 1 = 5 5 5 = 0 0 4 = 4"):
        assert TASK.check_trace(word, None, steps) == 1.0
    assert TASK.check_trace(word, None, "3 1 = 5 5 3 = 1 5 4 = 2") < 1.0  # not both


@pytest.mark.parametrize(("group", "length"), [("S3", 32), ("C6", 32), ("C2", 20), ("C3", 24)])
def test_check_trace_is_exact_for_long_words(group, length):
    task = GroupWords(group, length)
    for index in range(10):
        word = task.sample(0, index)
        traces = [task.trace(word, fold) for fold in FOLDS]
        traces.append(Trace(*parse_completion(task.practice(word, random.Random(index)))))
        assert all(task.check_trace(word, None, trace.steps) == 1.0 for trace in traces)


@pytest.mark.parametrize("group", ["S3", "A5"])
def test_no_more_steps_count_than_a_word_has_products(group):
    task = GroupWords(group)
    table = multiplication_table(group)
    steps = [f"{a} {b} = {table[a][b]}" for a, b in itertools.product(range(len(table)), repeat=2)]
    steps = (steps * 5000)[:5000]
    for word in (task.sample(0, 0), (0,) * 8, (1, 0) * 4):
        assert 0 < task.check_trace(word, None, " ".join(steps)) <= 7 / 5000
        repeated = f"{word[0]} {word[1]} = {table[word[0]][word[1]]} " * 5000
        assert 0 < task.check_trace(word, None, repeated) <= 7 / 5000
    assert task.check_trace((0,) * 8, None, "0 0 = 0 " * 5000) == 7 / 5000


@pytest.mark.parametrize(
    ("steps", "strategy"),
    [
        ("", "direct"),
        (".", "filler"),
        (". . . . .", "filler"),
        ("3 1 = 5", None),  # how left and tree begin
        ("3 1 = 5 5 4 = 2", "left"),
        ("3 1 = 5 4 2 = 5", "tree"),
        ("4 2 = 5", "right"),
        ("4 2 = 5 nonsense", "right"),
        ("1 4 = 5 3 5 = 2 2 2 = 0", None),
        ("nonsense", None),
        ("3 1 = 4 4 4 = 3", "left"),  # a wrong product is no other strategy
        ("4 2 = 1 1 1 = 0 3 0 = 3", "right"),
    ],
)
def test_recognise(steps, strategy):
    assert TASK.recognise(WORD, steps) == strategy


def test_two_elements_leave_only_one_fold():
    assert GroupWords("S3", length=2).recognise((3, 1), "3 1 = 5") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "S6"}, "group='S6': must be one of S3, S4, S5, A5, C2, C3, C4, C5, C6, C7, C8, "
                          "C9, C10, C11, C12."),
        ({"group": "C1"}, "group='C1': must be one of S3, S4, S5, A5, C2, C3, C4, C5, C6, C7, C8, "
                          "C9, C10, C11, C12."),
        ({"length": 1}, "length=1: a product needs at least 2 elements."),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        GroupWords(**arguments)
    assert str(error.value) == message


def test_sparse_words_have_any_number_of_elements_that_are_not_the_identity():
    dense, sparse = GroupWords("A5", length=4), GroupWords("A5", length=4, sparse=True)
    words = [sparse.sample(0, index) for index in range(4000)]
    assert [len(word) for word in words] == [4] * 4000
    assert all(
        element in (0, full)
        for index, word in enumerate(words)
        for element, full in zip(word, dense.sample(0, index))
    )
    # 1 to 4 elements are drawn, each number as often, and one of 60 drawn is the identity.
    counts = np.bincount([np.count_nonzero(word) for word in words], minlength=5)
    binomial = [[math.comb(n, k) * (59 / 60) ** k / 60 ** (n - k) for k in range(5)]
                for n in (1, 2, 3, 4)]
    expected = 1000 * np.sum(binomial, axis=0)
    assert (abs(counts - expected) < 5 * np.sqrt(expected) + 1).all()
    drawn = np.bincount([place for word in words for place in np.flatnonzero(word)])
    assert (abs(drawn - drawn.mean()) < 5 * np.sqrt(drawn.mean())).all()
