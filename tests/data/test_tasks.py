"""What every registered task keeps: exact traces, honest shares, splits that share no instance."""

import collections
import inspect
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.tasks import TASKS, make_task
from reasoning.data.tasks.base import (
    ANSWER,
    SPLITS,
    Trace,
    distinct_problems,
    parse_completion,
    split_of,
)
from reasoning.data.tasks.countdown import Countdown
from reasoning.data.tasks.group_words import GroupWords

EVERY_TASK = pytest.mark.parametrize("name", TASKS)
# Each step does one thing, and every strategy finds the answer.
STEPWISE = ("group_words", "group_words_c6", "expressions", "circuits", "squaring")
COUNT = 60
OWN = "or MODULE:ATTRIBUTE of your own"


def problems_and_traces(name):
    """(task, problem, strategy, trace) for every strategy that solves one of COUNT problems."""
    task = make_task(name)
    for index in range(COUNT):
        problem = task.sample(0, index)
        for strategy in task.strategies:
            trace = task.trace(problem, strategy)
            if trace is not None:
                yield task, problem, strategy, trace


def practice_traces(name):
    """(task, problem, trace) for those of COUNT problems that practice solves."""
    task = make_task(name)
    for index in range(COUNT):
        problem = task.sample(0, index)
        text = task.practice(problem, random.Random(index))
        if text is not None:
            yield task, problem, Trace(*parse_completion(text))


@EVERY_TASK
def test_every_strategy_writes_exact_traces(name):
    solved = collections.Counter()
    for task, problem, strategy, trace in problems_and_traces(name):
        solved[strategy] += 1
        assert task.verify(problem, trace.answer).correct
        assert task.check_trace(problem, strategy, trace.steps) == 1.0
        if not set(trace.steps) <= {".", " "}:  # nothing and dots show no operation
            assert task.check_trace(problem, None, trace.steps) == 1.0
    assert set(solved) == set(make_task(name).strategies)


@EVERY_TASK
def test_a_strategy_is_recognised_unless_another_writes_the_same(name):
    recognised = collections.Counter()
    for task, problem, strategy, trace in problems_and_traces(name):
        same = [s for s in task.strategies if task.trace(problem, s) == trace]
        expected = strategy if len(same) == 1 else None
        assert task.recognise(problem, trace.steps) == expected
        recognised[expected] += 1
    assert set(make_task(name).strategies) <= set(recognised)


@EVERY_TASK
def test_a_corrupted_step_lowers_the_share(name):
    rng = random.Random(0)
    for task, problem, strategy, trace in problems_and_traces(name):
        words = trace.steps.split()
        if not words:
            continue
        place = rng.randrange(len(words))
        other = rng.choice([word for word in (*task.words, "1", "2") if word != words[place]])
        corrupted = " ".join((*words[:place], other, *words[place + 1 :]))
        assert task.check_trace(problem, strategy, corrupted) < 1.0
        results = [i for i, word in enumerate(words) if i and words[i - 1] == "="]
        if results:
            place = rng.choice(results)
            wrong = str((int(words[place]) + 1) % (task.max_number + 1))
            corrupted = " ".join((*words[:place], wrong, *words[place + 1 :]))
            assert task.check_trace(problem, strategy, corrupted) < 1.0
            assert task.check_trace(problem, None, corrupted) < 1.0


@EVERY_TASK
def test_the_share_of_valid_steps_is_the_mean_over_the_steps(name):
    """Of exact traces every step is valid; of a corrupted one the steps before it still are."""
    rng = random.Random(1)
    for task, problem, _, trace in problems_and_traces(name):
        words = trace.steps.split()
        results = [i for i, word in enumerate(words) if i and words[i - 1] == "="]
        if not results:
            continue
        judged = task.judge_steps(problem, trace.steps)
        assert all(valid for _, valid in judged)
        place = rng.choice(results)
        words[place] = str((int(words[place]) + 1) % (task.max_number + 1))
        corrupted = " ".join(words)
        again = task.judge_steps(problem, corrupted)
        share = sum(valid for _, valid in again) / len(again)
        assert task.check_trace(problem, None, corrupted) == share < 1.0
        first = next(i for i, (_, valid) in enumerate(again) if not valid)
        assert again[:first] == judged[:first]
        # Steps stand in the text as they are told, one after the other.
        at = 0
        for text, _ in again:
            at = corrupted.index(text, at) + len(text)


@pytest.mark.parametrize("name", STEPWISE)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_changed_word_is_found(name, data):
    """In no place of any trace does another word count as right."""
    task = make_task(name)
    problem = task.sample(1, data.draw(st.integers(0, 1000)))
    strategy = data.draw(st.sampled_from(task.strategies[1:]))  # the first is `direct`
    words = task.trace(problem, strategy).steps.split()
    place = data.draw(st.integers(0, len(words) - 1))
    numbers = [str(number) for number in range(task.max_number + 2)]
    is_number = words[place].isdecimal()
    others = numbers if is_number else [*task.words, *numbers, "answers", "0x1", "\u0663"]
    other = data.draw(st.sampled_from([word for word in others if word != words[place]]))
    changed = " ".join((*words[:place], other, *words[place + 1 :]))
    assert task.check_trace(problem, strategy, changed) < 1.0
    if is_number:
        assert task.check_trace(problem, None, changed) < 1.0


@EVERY_TASK
def test_practice_is_exact_and_follows_no_one_strategy(name):
    recognised = collections.Counter()
    for task, problem, trace in practice_traces(name):
        assert task.verify(problem, trace.answer).correct
        assert task.check_trace(problem, None, trace.steps) == 1.0
        recognised[task.recognise(problem, trace.steps)] += 1
    assert recognised.total() > COUNT / 2
    # Half of countdown's random searches run backward, and every one of those opens as `backward`.
    assert max(recognised[s] for s in make_task(name).strategies) < recognised.total() * 2 / 3


@EVERY_TASK
def test_texts_are_known_words_joined_by_single_spaces(name):
    task = make_task(name)
    known = {*task.words, *map(str, range(task.max_number + 1))}
    assert len(known) == len(task.words) + task.max_number + 1
    traces = [(problem, trace) for _, problem, _, trace in problems_and_traces(name)]
    traces += [(problem, trace) for _, problem, trace in practice_traces(name)]
    for problem, trace in traces:
        text = f"{task.prompt(problem)} {trace.completion}"
        assert set(text.split(" ")) <= known


@EVERY_TASK
def test_parse_completion_inverts_completion(name):
    for *_, trace in problems_and_traces(name):
        assert parse_completion(trace.completion) == (trace.steps, trace.answer)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("", ("", None)),
        ("1 2 = 3", ("1 2 = 3", None)),
        ("answer", ("", "")),
        ("answer 1 answer 2", ("answer 1", "2")),
        ("  1 \n answer  3 ", ("1", "3")),
        ("1 answers 2", ("1 answers 2", None)),
    ],
)
def test_parse_completion_takes_any_text(text, parsed):
    assert parse_completion(text) == parsed


WORDS = st.lists(st.sampled_from(("1", "=", ".", ","))).map(" ".join)


@given(WORDS, WORDS)
def test_parse_completion_inverts_any_trace(steps, answer):
    assert parse_completion(Trace(steps, answer).completion) == (steps, answer)
    assert parse_completion(f"{ANSWER} {Trace(steps, answer).completion}")[1] == answer


@EVERY_TASK
def test_a_sample_depends_on_seed_and_index_alone(name):
    task, again = make_task(name), make_task(name)
    problems = [task.sample(5, index) for index in range(50)]
    assert [again.sample(5, index) for index in reversed(range(50))] == problems[::-1]
    assert [task.sample(6, index) for index in range(50)] != problems
    assert len(set(problems)) > 40


@EVERY_TASK
def test_no_instance_is_in_two_splits(name):
    task = make_task(name)
    keys = {
        split: {task.key(problem) for problem in distinct_problems(task, split, seed, 40)}
        for seed, split in enumerate(SPLITS)
    }
    assert all(len(found) == 40 for found in keys.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not keys[one] & keys[other]


@EVERY_TASK
def test_splits_hold_their_shares(name):
    task = make_task(name)
    keys = {task.key(task.sample(7, index)) for index in range(1500)}
    count = collections.Counter(map(split_of, keys))
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert count[split] / len(keys) == pytest.approx(share, abs=0.04)


def test_streams_give_their_split_in_order():
    task = make_task("countdown")
    found = list(itertools.islice(task.stream("test", 3), 20))
    samples = (task.sample(3, index) for index in itertools.count())
    expected = (problem for problem in samples if split_of(task.key(problem)) == "test")
    assert found == list(itertools.islice(expected, 20))


def test_distinct_problems_says_when_there_are_no_more():
    task = GroupWords("S3", length=2)  # 36 instances
    with pytest.raises(ValueError, match=r"count=40: only \d+ different problems were found in"):
        distinct_problems(task, "train", 0, 40)
    counts = [len(set(itertools.islice(task.stream(split, 0), 1000))) for split in SPLITS]
    assert sum(counts) == 36
    for split, count in zip(SPLITS, counts, strict=True):
        assert len(distinct_problems(task, split, 1, count)) == count


def test_an_empty_split_is_an_error_and_no_endless_search():
    task = Countdown(size=2, largest=1, target=1)  # one instance
    (full,) = (split for split in SPLITS if split == split_of(task.key(task.sample(0, 0))))
    for split in SPLITS:
        if split != full:
            with pytest.raises(ValueError, match=f"split='{split}': none of 10000 problems"):
                distinct_problems(task, split, 0, 1)


def test_distinct_problems_refuses_a_count_of_none():
    with pytest.raises(ValueError, match="count=0"):
        distinct_problems(make_task("countdown"), "train", 0, 0)


@EVERY_TASK
def test_an_unknown_strategy_is_refused(name):
    task = make_task(name)
    problem = task.sample(0, 0)
    message = f"strategy='sideways': {task.name} has {', '.join(task.strategies)}."
    for call in (task.trace, lambda p, s: task.check_trace(p, s, "1 1 = 1")):
        with pytest.raises(ValueError) as error:
            call(problem, "sideways")
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sudoku", {}, f"task='sudoku': must be one of {', '.join(TASKS)}, {OWN}."),
        ("group_words", {"size": 3}, "size=3: task 'group_words' takes group, length, sparse."),
        ("countdown", {"size": True}, "size=True: task 'countdown' takes int here."),
        ("countdown", {"tries": False}, "tries=False: task 'countdown' takes int here."),
        ("countdown", {"tries": 2.0}, "tries=2.0: task 'countdown' takes int here."),
        ("group_words", {"length": "long"}, "length='long': task 'group_words' takes int here."),
        ("group_words_s4", {"length": 1}, "length=1: a product needs at least 2 elements."),
    ],
)
def test_make_task_refuses_in_one_sentence(name, arguments, message):
    with pytest.raises(ValueError) as error:
        make_task(name, **arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("name", TASKS)
def test_an_argument_of_none_keeps_the_preset(name):
    every = {field for build, _ in TASKS.values() for field in inspect.signature(build).parameters}
    task = make_task(name, **dict.fromkeys(every))
    assert vars(task) == vars(make_task(name))


def test_an_argument_of_none_does_not_hide_another():
    task = make_task("countdown4", tries=3, size=None)
    assert (task.size, task.tries) == (4, 3)


def test_presets_differ_and_arguments_change_them():
    orders = [make_task(name).max_number + 1 for name in TASKS if name.startswith("group_words")]
    assert orders == [6, 24, 120, 60, 6]
    assert make_task("expressions").max_number + 1 == 7
    assert make_task("expressions6").max_number + 1 == 11
    assert len(make_task("circuits").sample(0, 0).gates) == 6
    assert len(make_task("circuits10").sample(0, 0).gates) == 10
    assert make_task("squaring").primes == [19, 23, 31, 43, 47]
    assert make_task("squaring_127").sample(0, 0).prime == 127
    assert len(make_task("countdown4").sample(0, 0).numbers) == 4
    assert len(make_task("group_words_a5", length=3).sample(0, 0)) == 3


@EVERY_TASK
def test_strategies_can_be_left_out(name):
    whole = make_task(name)
    kept = whole.strategies[-2:][::-1]
    task = make_task(name, kept)
    assert task.strategies == kept and task.num_traces == 2
    for index in range(8):
        problem = task.sample(0, index)
        traces = [trace for trace in (whole.trace(problem, each) for each in kept) if trace]
        assert task.completions(problem) == sorted({trace.completion for trace in traces})
        for trace in traces:
            assert task.recognise(problem, trace.steps) in (*whole.strategies, None)
    assert make_task(name).strategies == whole.strategies, "another task keeps all"


def test_a_strategy_that_a_task_does_not_have_is_refused():
    with pytest.raises(ValueError, match="strategy='up': task 'group_words' has direct, left"):
        make_task("group_words", ("up",))
