"""Circuits: values against truth tables read from the prompt, each order against its definition."""

import collections
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.tasks.base import Trace, parse_completion
from reasoning.data.tasks.circuits import Circuit, Circuits, Gate, split_steps

TASK = Circuits(inputs=2, gates=4)
PROBLEM = Circuit(
    (1, 0), (Gate("and", (2, 3)), Gate("not", (4,)), Gate("or", (2, 3)), Gate("xor", (2, 5)))
)
TRUTH = {"and": "0001", "or": "0111", "xor": "0110", "not": "10"}  # by the operands as one number


class Reading:
    """A circuit as its prompt says it, read with nothing taken from the task."""

    def __init__(self, prompt):
        words = prompt.split()
        assert words.pop() == ":"
        self.values, self.reads, self.operation = {}, {}, {}
        while words:
            number = int(words.pop(0))
            if (kind := words.pop(0)) == "=":
                self.values[number] = words.pop(0)
                continue
            count = 1 if kind == "not" else 2
            self.operation[number] = kind
            self.reads[number], words = [int(word) for word in words[:count]], words[count:]
        self.last = number

    def value(self, number):
        if number in self.values:
            return self.values[number]
        reads = "".join(self.value(read) for read in self.reads[number])
        return TRUTH[self.operation[number]][int(reads, 2)]

    def depth(self, number):
        return 1 + max(map(self.depth, self.reads[number])) if number in self.reads else 0

    def needed(self, number):
        """The gates that a gate needs, itself one of them."""
        if number not in self.reads:
            return set()
        return {number}.union(*(self.needed(read) for read in self.reads[number]))

    def step(self, number):
        reads = " ".join(self.value(read) for read in self.reads[number])
        return f"{number} {self.operation[number]} {reads} = {self.value(number)}"


@st.composite
def problems(draw):
    task = Circuits(draw(st.integers(2, 5)), draw(st.integers(4, 9)))
    return task, task.sample(draw(st.integers(0, 99)), draw(st.integers(0, 999)))


def test_traces_by_hand():
    # 4 = 1 and 0, 5 = not 4, 6 = 1 or 0, which 7 does not need, 7 = 2 xor 5.
    steps = {strategy: TASK.trace(PROBLEM, strategy).steps for strategy in TASK.strategies}
    assert steps == {
        "direct": "",
        "forward": "4 and 1 0 = 0 5 not 0 = 1 6 or 1 0 = 1 7 xor 1 1 = 0",
        "backward": "need 7 need 5 need 4 4 and 1 0 = 0 5 not 0 = 1 7 xor 1 1 = 0",
        "levels": "4 and 1 0 = 0 6 or 1 0 = 1 5 not 0 = 1 7 xor 1 1 = 0",
        "filler": ". . . .",
    }
    assert TASK.prompt(PROBLEM) == "2 = 1 3 = 0 4 and 2 3 5 not 4 6 or 2 3 7 xor 2 5 :"
    assert TASK.trace(PROBLEM, "backward").completion.endswith("7 xor 1 1 = 0 answer 0")


@settings(deadline=None, max_examples=150)
@given(problems(), st.randoms(use_true_random=False))
def test_every_strategy_finds_the_value_of_the_truth_tables(case, rng):
    task, problem = case
    reading = Reading(task.prompt(problem))
    traces = [task.trace(problem, strategy) for strategy in task.strategies]
    for trace in (*traces, Trace(*parse_completion(task.practice(problem, rng)))):
        assert trace.answer == reading.value(reading.last)
        assert task.verify(problem, trace.answer).reason == "correct"


@settings(deadline=None, max_examples=150)
@given(problems())
def test_the_orders_are_those_that_the_names_say(case):
    task, problem = case
    reading = Reading(task.prompt(problem))
    gates = list(reading.reads)
    assert gates == sorted(gates) and len(gates) == task.gates

    def backward(number):
        steps = [f"need {number}"]
        for read in reading.reads[number]:
            if read in reading.reads and read not in known:
                steps += backward(read)
        known.add(number)
        return [*steps, reading.step(number)]

    known = set()
    expected = {
        "forward": [reading.step(number) for number in gates],
        "levels": [reading.step(n) for n in sorted(gates, key=lambda n: (reading.depth(n), n))],
        "backward": backward(reading.last),
        "filler": ["."] * len(gates),
    }
    for strategy, steps in expected.items():
        assert split_steps(task.trace(problem, strategy).steps) == steps
    assert known == reading.needed(reading.last)
    assert expected["levels"] != expected["forward"]


@pytest.fixture(scope="module")
def readings():
    task = Circuits()
    return [Reading(task.prompt(task.sample(1, index))) for index in range(3000)]


def test_neither_operations_nor_inputs_tell_the_answer(readings):
    """No guess from what can be seen without evaluating is much better than a coin."""
    seen = {
        "nothing": lambda r: 0,
        "last operation": lambda r: r.operation[r.last],
        "last level": lambda r: (
            r.operation[r.last], *sorted(r.operation.get(n, "") for n in r.reads[r.last])
        ),
        "inputs": lambda r: tuple(r.values.values()),
        "ors over ands": lambda r: list(r.operation.values()).count("or")
        - list(r.operation.values()).count("and"),
        "nots": lambda r: list(r.operation.values()).count("not"),
    }
    for what, feature in seen.items():
        answers = collections.defaultdict(collections.Counter)
        for reading in readings:
            answers[feature(reading)][reading.value(reading.last)] += 1
        guessed = sum(max(counts.values()) for counts in answers.values()) / len(readings)
        assert guessed < (0.62 if what == "last level" else 0.55), what


def test_most_gates_matter(readings):
    assert statistics.mean(len(r.needed(r.last)) / len(r.reads) for r in readings) > 0.7
    assert 0.2 < statistics.mean(len(r.needed(r.last)) == len(r.reads) for r in readings) < 0.5
    used = [{n for reads in r.reads.values() for n in reads} & set(r.values) for r in readings]
    assert statistics.mean(len(inputs) for inputs in used) > 2.7  # of 3


@pytest.mark.parametrize(("inputs", "gates"), [(3, 6), (3, 12), (4, 12), (4, 24)])
def test_depth_grows_with_the_gates(inputs, gates):
    task = Circuits(inputs, gates)
    problems = [task.sample(2, index) for index in range(200)]
    depth = statistics.mean(problem.depths()[problem.last] for problem in problems)
    assert 0.5 * gates < depth < 0.9 * gates


def test_equal_circuits_in_another_order_have_one_key():
    # The same with the inputs and the first and the third gate exchanged.
    other = Circuit(
        (0, 1), (Gate("or", (2, 3)), Gate("and", (2, 3)), Gate("not", (5,)), Gate("xor", (3, 6)))
    )
    assert TASK.key(other) == TASK.key(PROBLEM)
    changes = [
        Circuit((1, 1), PROBLEM.gates),
        Circuit(PROBLEM.inputs, (*PROBLEM.gates[:3], Gate("or", (2, 5)))),
        Circuit(PROBLEM.inputs, (*PROBLEM.gates[:3], Gate("xor", (3, 5)))),
        Circuit(PROBLEM.inputs, (*PROBLEM.gates[:2], Gate("and", (2, 3)), PROBLEM.gates[3])),
        Circuit(PROBLEM.inputs, (*PROBLEM.gates[:2], PROBLEM.gates[3], PROBLEM.gates[2])),
    ]
    assert len({TASK.key(problem) for problem in (PROBLEM, *changes)}) == 6


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("0", "correct"), ("1", "wrong_value"), ("2", "malformed"), ("00", "malformed"),
     ("٠", "malformed"), ("0 0", "malformed"), (None, "no_answer")],
)
def test_verdicts(answer, reason):
    assert TASK.verify(PROBLEM, answer).reason == reason


@pytest.mark.parametrize(
    ("steps", "strategy", "share"),
    [
        ("6 or 1 0 = 1 4 and 1 0 = 0 5 not 0 = 1 7 xor 1 1 = 0", None, 1.0),
        ("4 and 1 0 = 0 5 not 0 = 1 7 xor 1 1 = 0", None, 1.0),  # 6 is not needed
        ("4 and 1 0 = 0 5 not 0 = 1 7 xor 1 1 = 0", "forward", 2 / 3),
        ("4 and 1 0 = 0 5 not 0 = 1 7 xor 1 1 = 0 6 or 1 0 = 1", None, 1.0),
        ("4 and 1 0 = 0 4 and 1 0 = 0", None, 0.5),  # known already
        ("5 not 0 = 1", None, 0.0),  # 4 is not known yet
        ("4 and 0 1 = 0", None, 0.0),  # in the order of the ids
        ("4 and 1 0 = 1", None, 0.0),
        ("4 or 1 0 = 1", None, 0.0),  # 4 is another gate
        ("2 and 1 0 = 0", None, 0.0),
        ("4 and 1 0 = ٠", None, 0.0),
        ("4 and 1 0 = 0 and so", None, 1 / 3),
        ("need 7 need 5 need 4 4 and 1 0 = 0 5 not 0 = 1 7 xor 1 1 = 0", None, 1.0),
        ("6 or 1 0 = 1 need 7 need 5 need 4 4 and 1 0 = 0", None, 1.0),
        ("4 and 1 0 = 0 need 7 need 5 5 not 0 = 1 7 xor 1 1 = 0", None, 1.0),
        ("4 and 1 0 = 0 need 7 need 4", None, 2 / 3),  # 4 is known
        ("need 5", None, 0.0),  # by what?
        ("need 7 need 7", None, 0.5),
        ("need 7 need 6", None, 0.5),  # 7 does not read it
        ("need 7 6 or 1 0 = 1", None, 0.5),  # does not serve the need
        ("need 7 4 and 1 0 = 0", None, 0.5),  # nor, as it says, is it the next
        ("4 and 1 0 = 0 5 not 0 = 1 7 xor 1 1 = 0 need 7", None, 0.75),
        ("", "direct", 1.0),
        ("4 and 1 0 = 0", "direct", 0.0),
        ("", "forward", 0.0),
        ("", None, 0.0),
        (". . .", None, 0.0),
        (". . . .", "filler", 1.0),
        (". . . . .", "filler", 0.8),
    ],
)
def test_check_trace(steps, strategy, share):
    assert TASK.check_trace(PROBLEM, strategy, steps) == pytest.approx(share)


@pytest.mark.parametrize(
    ("steps", "strategy"),
    [
        ("", "direct"),
        (". .", "filler"),
        ("4 and 1 0 = 0", None),  # how forward and levels begin
        ("4 and 1 0 = 0 5 not 0 = 1", "forward"),
        ("4 and 1 1 = 1 5 not 1 = 0", "forward"),  # wrong values are no other strategy
        ("4 and 1 0 = 0 6 or 1 0 = 1", "levels"),
        ("need 7", "backward"),
        ("need 7 need 5 need 4 4 and 0 0 = 0", "backward"),
        ("6 or 1 0 = 1", None),
        ("need 6", None),
        ("nonsense", None),
    ],
)
def test_recognise(steps, strategy):
    assert TASK.recognise(PROBLEM, steps) == strategy


def test_practice_evaluates_with_and_without_needs():
    task = Circuits()
    texts = [task.practice(task.sample(0, i), random.Random(i)) for i in range(200)]
    assert 60 < sum("need" in text for text in texts) < 140
    assert sum("need" in text and not text.startswith("need") for text in texts) > 20


HOSTILE = (
    "need " * 20_000, "= " * 20_000, "need 7 " * 10_000, "4 and 1 0 = 0 " * 10_000, "7 " * 20_000,
    "9" * 100_000, "need " + "9" * 10_000, "\0",
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_judged_like_any_other(text):
    assert TASK.verify(PROBLEM, text).reason == "malformed"
    for strategy in (None, *TASK.strategies):
        assert TASK.check_trace(PROBLEM, strategy, text) < 0.01
    TASK.recognise(PROBLEM, text)


@given(st.lists(st.sampled_from((*TASK.words, *"01234567", "8"))).map(" ".join))
def test_any_words_are_judged(text):
    assert 0 <= TASK.check_trace(PROBLEM, None, text) <= 1
    assert TASK.recognise(PROBLEM, text) in (*TASK.strategies, None)
    assert TASK.verify(PROBLEM, text).correct == (text == "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": 1}, "inputs=1: must lie in 2..100."),
        ({"inputs": 101}, "inputs=101: must lie in 2..100."),
        ({"gates": 3}, "gates=3: must lie in 4..100."),
        ({"gates": 101}, "gates=101: must lie in 4..100."),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        Circuits(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(("inputs", "gates"), [(2, 4), (100, 4), (2, 100), (100, 100)])
def test_extreme_arguments_are_possible(inputs, gates):
    task = Circuits(inputs, gates)
    problem = task.sample(0, 0)
    steps = task.trace(problem, "backward").steps
    assert task.check_trace(problem, None, steps) == 1.0
    assert set(task.prompt(problem).split()) <= {*task.words, *map(str, range(task.max_number + 1))}
