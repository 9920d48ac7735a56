"""Batches: every example once an epoch, whole problems, alike for any worker, host or restart."""

import hashlib
import itertools
from collections import Counter

import absl.flags
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.formats import TextFormat
from reasoning.data.pipelines import (
    Example,
    bucket_lengths,
    collate,
    named_examples,
    plan_batches,
    practice_examples,
    strategy_examples,
    trace_batches,
)
from reasoning.data.tasks import make_task
from reasoning.data.tasks.base import parse_completion, split_of
from reasoning.data.tasks.group_words import GroupWords
from reasoning.data.tokenizers import train_tokenizer

ROWS, PAD = 6, 0


def make_examples(count, seed=0, most_traces=3):
    """Problems whose first token is their index, with 1 to 3 traces of 1 to 12 tokens."""
    rng = np.random.default_rng(seed)

    def ids(least, most):
        return tuple(rng.integers(3, 1000, rng.integers(least, most + 1)).tolist())

    return [
        Example(
            (1000 + i, *ids(0, 4)), tuple(ids(1, 12) for _ in range(rng.integers(most_traces) + 1))
        )
        for i in range(count)
    ]


EXAMPLES = make_examples(20)
BUCKETS = [8, 12, 20]
SETTINGS = dict(rows=ROWS, buckets=BUCKETS, num_batches=12, pad_id=PAD, seed=3)


def batches_of(**changes):
    return list(trace_batches(EXAMPLES, **{**SETTINGS, **changes}))


def assert_equal_batches(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def batches():
    return batches_of()


# One batch


def test_collate_by_hand():
    examples = [Example((1, 5), ((7, 2), (8, 9, 2))), Example((1,), ((6, 2),))]
    assert [example.longest for example in examples] == [6, 4]
    batch = collate(examples, 8, [1, 0], 4, pad_id=0)
    np.testing.assert_array_equal(
        batch.tokens,
        [
            [1, 0, 6, 2, 0, 0, 0, 0],
            [1, 5, 0, 7, 2, 0, 0, 0],
            [1, 5, 0, 8, 9, 2, 0, 0],
            [0] * 8,
        ],
    )
    np.testing.assert_array_equal(batch.lengths, [4, 5, 6, 0])
    np.testing.assert_array_equal(batch.fork, [1, 2, 2, 0])
    np.testing.assert_array_equal(batch.problem, [0, 1, 1, 0])
    np.testing.assert_array_equal(batch.slot, [0, 0, 1, 0])
    np.testing.assert_array_equal(batch.problem_seed, [1, 0, 0, 0])
    assert batch.problem_seed.dtype == np.uint32
    assert {batch.tokens.dtype, batch.lengths.dtype, batch.fork.dtype} == {np.dtype(np.int32)}


def test_rows_are_whole_examples_padded_at_the_end(batches):
    for batch in batches:
        assert batch.tokens.shape[0] == ROWS and batch.tokens.shape[1] in BUCKETS
        rows = iter(range(ROWS))
        members = [
            index for index, _ in itertools.groupby(zip(batch.problem_seed, batch.problem,
                                                        batch.lengths > 0, strict=True))
        ]
        for problem, (index, place, exists) in enumerate(members):
            if not exists:
                continue
            example = EXAMPLES[index]
            assert place == problem
            for slot, trace in enumerate(example.traces):  # all traces of a problem, in order
                row = next(rows)
                ids = [*example.prompt, PAD, *trace]
                assert batch.tokens[row].tolist() == ids + [PAD] * (len(batch.tokens[0]) - len(ids))
                assert batch.lengths[row] == len(ids)
                assert batch.fork[row] == len(example.prompt)
                assert (batch.problem[row], batch.slot[row]) == (problem, slot)
        rest = list(rows)
        assert (batch.tokens[rest] == PAD).all() and (batch.lengths[rest] == 0).all()


# The plan


def test_every_token_of_every_example_comes_once_per_epoch():
    examples = make_examples(12, most_traces=1)  # one row each, two batches an epoch
    rows = Counter((*example.prompt, PAD, *example.traces[0]) for example in examples)
    batches = trace_batches(
        examples, rows=ROWS, buckets=[20], num_batches=6, pad_id=PAD, seed=0
    )
    orders = []
    for epoch in zip(batches, batches, strict=True):  # two at a time, of one iterator
        seen = [
            tuple(row[:length].tolist())
            for batch in epoch for row, length in zip(batch.tokens, batch.lengths, strict=True)
        ]
        assert Counter(seen) == rows
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]  # a new order every epoch


problem_sizes = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(sizes=problem_sizes, rows=st.integers(4, 7), count=st.integers(1, 3), seed=st.integers(0, 9))
def test_a_plan_is_fair_and_full(sizes, rows, count, seed):
    examples = [Example((1,) * p, ((2,) * length,) * traces) for p, traces, length in sizes]
    buckets = bucket_lengths(examples, count)
    assert len(buckets) <= count and buckets == sorted(set(buckets))
    assert all(length % 4 == 0 for length in buckets)
    assert buckets[-1] >= max(example.longest for example in examples)
    plan = plan_batches(examples, rows=rows, buckets=buckets, num_batches=25, seed=seed)
    assert len(plan) == 25
    for bucket in buckets:
        inside = [members for length, members in plan if length == bucket]
        fitting = {
            i for i, example in enumerate(examples)
            if example.longest <= bucket
            and not any(example.longest <= smaller < bucket for smaller in buckets)
        }
        # Read in order, a bucket's batches are one permutation of its examples after another.
        drawn = [index for members in inside for index in members]
        for start in range(0, len(drawn), max(len(fitting), 1)):
            epoch = drawn[start : start + len(fitting)]
            assert len(set(epoch)) == len(epoch) and set(epoch) <= fitting
        # No batch overflows, and the example that opens the next would not have fitted.
        for members, following in zip(inside, [*inside[1:], None]):
            used = sum(len(examples[i].traces) for i in members)
            assert 0 < used <= rows
            if following:
                assert used + len(examples[following[0]].traces) > rows
    longer = plan_batches(examples, rows=rows, buckets=buckets, num_batches=40, seed=seed)
    assert longer[:25] == plan


def test_more_batches_and_other_seeds(batches):
    assert_equal_batches(batches_of(num_batches=5), batches[:5])
    other = batches_of(seed=4)
    assert any(
        a.tokens.shape != b.tokens.shape or (a.tokens != b.tokens).any()
        for a, b in zip(other, batches, strict=True)
    )
    assert batches_of(num_batches=0) == []


def test_bucket_lengths_hold_equal_shares():
    examples = [Example((1,) * (i + 1), ((2,),)) for i in range(1, 41)]
    buckets = bucket_lengths(examples, 4)
    shares = np.diff([0, *(sum(e.longest <= length for e in examples) for length in buckets)])
    assert shares.sum() == 40 and (abs(shares - 10) <= 3).all()
    assert bucket_lengths(examples[:1], 3) == [4]


# The same for any number of workers, any host, any restart


def test_worker_processes_change_nothing(batches):
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()
    assert_equal_batches(batches_of(num_workers=2), batches)


def test_a_restored_iterator_goes_on_where_it_was(batches):
    iterator = trace_batches(EXAMPLES, **SETTINGS)
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    assert_equal_batches(rest, batches[5:])
    restored = trace_batches(EXAMPLES, **SETTINGS)
    restored.set_state(state)
    assert_equal_batches(list(restored), rest)


@pytest.mark.parametrize("num_hosts", [2, 3])
def test_hosts_share_the_global_batch(batches, num_hosts):
    shards = [batches_of(host=host, num_hosts=num_hosts) for host in range(num_hosts)]
    assert shards[0][0].tokens.shape[0] == ROWS // num_hosts
    together = [
        jax.tree.map(lambda *parts: np.concatenate(parts), *parts)
        for parts in zip(*shards, strict=True)
    ]
    assert_equal_batches(together, batches)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(buckets=[4, 8]), r"buckets=\[4, 8\]: the longest row has \d+ tokens; add a bucket\."),
        (dict(rows=2), r"rows=2: one problem alone has 3 traces; raise it\."),
        (dict(num_hosts=4), r"rows=6: must be a multiple of num_hosts=4\."),
        (dict(num_batches=-1), r"num_batches=-1: must be 0 \(none\) or above\."),
    ],
    ids=str,
)
def test_what_cannot_be_batched_is_refused_in_one_sentence(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        batches_of(**changes)


@pytest.mark.parametrize("count", [0, -1])
def test_no_buckets_are_refused(count):
    with pytest.raises(ValueError, match=f"^count={count}: ask for at least one bucket\\.$"):
        bucket_lengths(EXAMPLES, count)


def test_no_examples_are_refused():
    for batch in (
        lambda: bucket_lengths([], 2),
        lambda: plan_batches([], rows=ROWS, buckets=BUCKETS, num_batches=1, seed=0),
    ):
        with pytest.raises(ValueError, match=r"^examples=\[\]: .*; give at least one\.$"):
            batch()


# Examples of a task

TASKS = [("group_words", dict(length=4)), ("countdown", {})]


@pytest.fixture(scope="module", params=TASKS, ids=[name for name, _ in TASKS])
def task(request):
    name, arguments = request.param
    return make_task(name, **arguments)


@pytest.fixture(scope="module")
def tokenizer(task):
    return train_tokenizer(
        (), vocab_size=None, words=task.words, numbers="whole", max_number=task.max_number
    )


def train_problems(task, seed, examples, tokenizer):
    """The problem of each example, found by its prompt in the task's own stream."""
    problems = [task.sample(seed, index) for index in range(200)]
    read = TextFormat(tokenizer).prompt_ids
    found = {tuple(read(task.prompt(problem))): problem for problem in problems}
    return [found[example.prompt] for example in examples]


def test_examples_are_the_distinct_traces_of_train_problems(task, tokenizer):
    examples = strategy_examples(task, TextFormat(tokenizer), seed=5, count=30)
    assert len(examples) == 30
    for example, problem in zip(
        examples, train_problems(task, 5, examples, tokenizer), strict=True
    ):
        assert split_of(task.key(problem)) == "train"
        assert example.prompt[0] == tokenizer.bos_id
        traces = [task.trace(problem, strategy) for strategy in task.strategies]
        completions = {trace.completion for trace in traces if trace is not None}
        assert all(trace[-1] == tokenizer.eos_id for trace in example.traces)
        decoded = [tokenizer.decode(trace[:-1]) for trace in example.traces]
        assert sorted(decoded) == sorted(completions)  # every one, and none twice
        assert all(task.verify(problem, parse_completion(text)[1]).correct for text in decoded)


def test_the_order_of_traces_says_nothing_about_strategies(task, tokenizer):
    examples = strategy_examples(task, TextFormat(tokenizer), seed=5, count=60)
    problems = train_problems(task, 5, examples, tokenizer)
    places = {strategy: Counter() for strategy in task.strategies}
    for example, problem in zip(examples, problems, strict=True):
        for strategy in task.strategies:
            trace = task.trace(problem, strategy)
            if trace is not None and len(example.traces) > 2:
                ids = (*tokenizer.encode(trace.completion), tokenizer.eos_id)
                places[strategy][example.traces.index(ids)] += 1
    for strategy, counts in places.items():
        assert len(counts) > 2 and max(counts.values()) < 0.7 * counts.total(), strategy


def test_examples_hold_ids_alone_and_follow_the_seed(task, tokenizer):
    examples = strategy_examples(task, TextFormat(tokenizer), seed=5, count=10)
    for example in examples:
        assert set(vars(example)) == {"prompt", "traces"}
        ids = [*example.prompt, *itertools.chain.from_iterable(example.traces)]
        assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)
    assert strategy_examples(task, TextFormat(tokenizer), seed=5, count=12)[:10] == examples
    assert strategy_examples(task, TextFormat(tokenizer), seed=6, count=10) != examples


# SHA-256 of twelve examples, as they were before corpora came through the same functions.
EXAMPLES_SHA = {
    "countdown": ("eb20ee27c5fe67bc", "d3ea800b59395b5a"),
    "countdown4": ("70173a18d536d91e", "efc2016f37ee9a35"),
    "group_words": ("a5e5d8a580bea089", "7ba4338dadbccff0"),
    "group_words_a5": ("53c353536b4052e9", "021e9eacb0ed9b24"),
}


@pytest.mark.parametrize("name", EXAMPLES_SHA)
def test_examples_stay_what_they_were(name):
    task = make_task(name)
    tokenizer = train_tokenizer(
        (), vocab_size=None, words=task.words, numbers="whole", max_number=task.max_number
    )

    def digest(make):
        made = make(task, TextFormat(tokenizer), seed=3, count=12)
        examples = [(example.prompt, example.traces) for example in made]
        return hashlib.sha256(repr(examples).encode()).hexdigest()[:16]

    assert (digest(strategy_examples), digest(practice_examples)) == EXAMPLES_SHA[name]


def test_practice_is_one_correct_trace_each(task, tokenizer):
    examples = practice_examples(task, TextFormat(tokenizer), seed=5, count=10)
    for example, problem in zip(
        examples, train_problems(task, 5, examples, tokenizer), strict=True
    ):
        assert split_of(task.key(problem)) == "train"
        (trace,) = example.traces
        answer = parse_completion(tokenizer.decode(trace[:-1]))[1]
        assert trace[-1] == tokenizer.eos_id and task.verify(problem, answer).correct
    assert practice_examples(task, TextFormat(tokenizer), seed=5, count=10) == examples


class Silent(GroupWords):
    """Writes traces for one problem in `every` that it is asked for."""

    def __init__(self, every):
        super().__init__("S5")  # so many words that none comes twice
        self.every, self.asked = every, set()

    def _speaks(self, problem):
        self.asked.add(problem)
        return len(self.asked) % self.every == 0

    def trace(self, problem, strategy):
        return super().trace(problem, strategy) if self._speaks(problem) else None

    def practice(self, problem, rng):
        return super().practice(problem, rng) if self._speaks(problem) else None


@pytest.fixture(scope="module")
def s5_tokenizer():
    task = GroupWords("S5")
    return train_tokenizer(
        (), vocab_size=None, words=task.words, numbers="whole", max_number=task.max_number
    )


@pytest.mark.parametrize("make", [strategy_examples, practice_examples])
def test_a_thousand_problems_without_a_trace_end_the_search(make, s5_tokenizer):
    task = Silent(every=1000)
    examples = make(task, TextFormat(s5_tokenizer), seed=0, count=2)
    problems = itertools.islice(task.stream("train", 0), 999, None, 1000)
    read = TextFormat(s5_tokenizer).prompt_ids
    expected = [tuple(read(task.prompt(next(problems)))) for _ in range(2)]
    assert [example.prompt for example in examples] == expected
    with pytest.raises(ValueError) as error:
        make(Silent(every=1001), TextFormat(s5_tokenizer), seed=0, count=2)
    assert str(error.value) == (
        "count=2: group_words has no trace for any of 1000 problems in a row, after 0 that have "
        "one; make the task easier, as by more tries, or take a corpus with traces."
    )


@pytest.mark.parametrize("make", [strategy_examples, practice_examples])
@pytest.mark.parametrize("count", [0, -1])
def test_a_count_of_no_examples_is_refused(make, count, s5_tokenizer):
    with pytest.raises(ValueError, match=f"^count={count}: ask for at least one problem\\.$"):
        make(GroupWords("S5"), TextFormat(s5_tokenizer), seed=0, count=count)


# Strategies by name


def format_of(task):
    """The format of a task of its own words."""
    return TextFormat(train_tokenizer(
        (), vocab_size=None, words=task.words, numbers="whole", max_number=task.max_number
    ))


def test_named_examples_keep_the_order_of_the_names():
    names = ["right", "direct"]
    task = make_task("group_words", names, length=3)
    text_format = format_of(task)
    examples = named_examples(task, text_format, seed=0, count=4)
    problems = list(itertools.islice(task.stream("train", 0), 4))
    for example, problem in zip(examples, problems, strict=True):
        texts = [text_format.completion_text(trace) for trace in example.traces]
        assert texts == [task.trace(problem, name).completion for name in names]
        assert text_format.tokenizer.decode(example.prompt[1:]) == task.prompt(problem)


def test_named_examples_leave_out_problems_that_a_strategy_does_not_solve():
    task = make_task("countdown", ["largest", "nearest"], tries=1)
    examples = named_examples(task, format_of(task), seed=0, count=5)
    assert [len(example.traces) for example in examples] == [2] * 5
