"""What is kept of a policy's completions: equations, distinct ways, draws, pairs and hints."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.data.formats import TextFormat
from reasoning.data.pipelines import Example, make_example, practice_examples
from reasoning.data.self_training import (
    HintedPrompts,
    distinct,
    equations,
    hinted_example,
    keep_right,
    preference_pairs,
)
from reasoning.data.tasks import make_task
from reasoning.data.tasks.base import parse_completion
from reasoning.data.tokenizers import train_tokenizer

FIRST = "20 - 8 = 12 , 12 + 3 = 15 low answer 20 - 8 = 12"
REWORDED = "from 20 - 8 = 12 high 12 + 3 = 15 yes so answer 20 - 8 = 12"
OTHER = "20 - 8 = 12 , 12 - 3 = 9 low answer 20 - 8 = 12"


def test_equations_of_traces_and_of_natural_text():
    assert equations(FIRST) == ("20-8=12", "12+3=15", "20-8=12")
    text = "She has <<48/2=24>>24 left, then 1.5 * 2 + 3 = 6.0. All in all 6."
    assert equations(text) == ("48/2=24", "1.5*2+3=6.0")
    assert equations("3 - 5 = -2, so -2 + 7 = 5") == ("3-5=-2", "2+7=5")
    assert equations("answer 7") == ()


def test_completions_with_the_same_equations_in_the_same_order_are_one():
    assert distinct([FIRST, OTHER, REWORDED, FIRST]) == [FIRST, OTHER]
    swapped = "12 + 3 = 15 low 20 - 8 = 12 , answer 20 - 8 = 12"
    assert distinct([FIRST, swapped]) == [FIRST, swapped]
    assert distinct(["no way", "none", "no way"]) == ["no way", "none"]


WAYS = [f"{a} + {b} = {a + b}" for a, b in itertools.product(range(1, 5), repeat=2)]
SAMPLES = st.lists(st.lists(st.tuples(st.sampled_from(WAYS), st.booleans())), max_size=5)


def split(samples):
    """Texts and verdicts, each text judged the same way throughout."""
    verdicts = {}
    texts = [[text for text, _ in row] for row in samples]
    for text, verdict in itertools.chain(*samples):
        verdicts.setdefault(text, verdict)
    return texts, [[verdicts[text] for text in row] for row in texts]


@given(SAMPLES, st.one_of(st.none(), st.integers(1, 4)), st.integers(0, 3))
def test_what_is_kept_is_right_distinct_and_no_more_than_the_cap(samples, cap, seed):
    texts, correct = split(samples)
    kept = keep_right(texts, correct, cap, seed)
    assert len(kept) == len(texts)
    for row, verdicts, chosen in zip(texts, correct, kept, strict=True):
        right = {text for text, verdict in zip(row, verdicts, strict=True) if verdict}
        assert set(chosen) <= right and len(set(chosen)) == len(chosen)
        assert len(chosen) == (len(right) if cap is None else min(cap, len(right)))
    assert keep_right(texts, correct, cap, seed) == kept


def test_the_draw_under_a_cap_is_a_problems_own_and_reaches_every_completion():
    rows, right = [WAYS[:6]] * 2, [[True] * 6] * 2
    drawn = [keep_right(rows, right, 2, seed) for seed in range(40)]
    assert {text for (first, _) in drawn for text in first} == set(WAYS[:6])
    assert any(first != second for first, second in drawn)
    alone = [keep_right(rows[:1], right[:1], 2, seed)[0] for seed in range(40)]
    assert alone == [first for first, _ in drawn]


@given(SAMPLES, st.integers(1, 3), st.integers(0, 3))
def test_pairs_are_right_and_wrong_and_use_no_completion_twice(samples, limit, seed):
    texts, correct = split(samples)
    for row, verdicts, pairs in zip(
        texts, correct, preference_pairs(texts, correct, limit, seed), strict=True
    ):
        sides = [
            {t for t, v in zip(row, verdicts, strict=True) if v is side} for side in (True, False)
        ]
        assert len(pairs) == min(limit, *map(len, sides))
        for i, side in enumerate(sides):
            chosen = [pair[i] for pair in pairs]
            assert set(chosen) <= side and len(set(chosen)) == len(chosen)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: keep_right([], [], 0, 0), "cap=0: must be at least 1"),
        (lambda: preference_pairs([], [], 0, 0), "limit=0: must be at least 1"),
        (lambda: hinted_example(Example((1,), ((2, 3), (2, 3))), 2), "a hint needs one trace"),
        (lambda: hinted_example(Example((1,), ((4, 3),)), 2), "a hint needs one trace"),
    ],
)
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_hint_in_ids_is_the_hint_in_words():
    task = make_task("countdown")
    tokenizer = train_tokenizer(
        (), vocab_size=None, words=task.words, numbers="whole", max_number=task.max_number
    )
    text_format = TextFormat(tokenizer)
    answer_id = tokenizer.encode("answer")[0]
    problem = next(task.stream("train", 0))
    completion = task.completions(problem)[0]
    told = hinted_example(
        make_example(text_format, task.prompt(problem), [completion]), answer_id
    )
    answer = parse_completion(completion)[1]
    prompt = HintedPrompts(task).prompt((problem, answer))
    assert prompt == f"{task.prompt(problem)} answer {answer}"
    assert told == make_example(text_format, prompt, [completion])
    for example in practice_examples(task, text_format, 0, 20):
        hinted = hinted_example(example, answer_id)
        assert hinted.traces == example.traces
        assert hinted.prompt[: len(example.prompt)] == example.prompt
