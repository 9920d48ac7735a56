"""Judging completions and summing them up: against cases small enough to count by hand."""

import itertools

import numpy as np
import pytest

from reasoning.data.pipelines import prompt_ids
from reasoning.data.tasks import make_task
from reasoning.data.tasks.countdown import CountdownProblem
from reasoning.data.tokenizers import train_tokenizer
from reasoning.evaluation.estimators import pass_at_k
from reasoning.evaluation.policies import Policy, judge, pass_curve, summarise
from reasoning.models.config import ModelConfig

TASK = make_task("countdown")
TOKENIZER = train_tokenizer(
    (), vocab_size=None, words=TASK.words, numbers="whole", max_number=TASK.max_number
)
CONFIG = ModelConfig(vocab_size=TOKENIZER.vocab_size, num_strategies=4)
POLICY = Policy(None, CONFIG, TOKENIZER, TASK, max_new_tokens=64)
PROBLEM = CountdownProblem((2, 3, 10), 16)
RIGHT = "3 * 2 = 6 , 10 + 6 = 16 yes answer 3 * 2 = 6 , 10 + 6 = 16"
WRONG = "3 * 2 = 6 , 10 + 6 = 16 yes answer 3 + 2 = 5 , 10 + 5 = 15"


def rows(*completions: tuple[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask `[1, R, 64]` of (first id, text) completions that end with <eos>."""
    tokens = np.zeros((1, len(completions), 64), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for r, (first, text) in enumerate(completions):
        ids = [first, *TOKENIZER.encode(text), TOKENIZER.eos_id]
        tokens[0, r, : len(ids)] = ids
        mask[0, r, : len(ids)] = True
    return tokens, mask


def test_judge_reads_tag_verdict_strategy_and_length():
    tag = CONFIG.vocab_size + 2
    judged = judge(POLICY, [PROBLEM], *rows((tag, RIGHT), (tag, WRONG), (5, RIGHT), (tag, "")))
    assert judged.tags.tolist() == [[2, 2, -1, 2]]
    assert judged.correct.tolist() == [[True, False, True, False]]
    assert judged.reasons.tolist() == [["correct", "wrong_value", "correct", "no_answer"]]
    assert judged.validity.tolist() == [[1.0, 1.0, 1.0, 0.0]]
    assert judged.lengths[0, 0] == 2 + len(RIGHT.split())
    assert judged.answers[0, 0] == "3 * 2 = 6 , 10 + 6 = 16"
    expected = TASK.recognise(PROBLEM, "3 * 2 = 6 , 10 + 6 = 16 yes")
    names = [*TASK.strategies, None]
    assert names[judged.strategies[0, 0]] == expected
    assert judged.strategies[0, 3] == len(TASK.strategies)


def test_a_completion_that_is_cut_off_is_not_correct():
    tokens, mask = rows((CONFIG.vocab_size, RIGHT))
    end = mask.sum() - 1
    mask[0, 0, end] = False
    judged = judge(POLICY, [PROBLEM], tokens, mask)
    assert not judged.correct[0, 0]
    assert judged.reasons[0, 0] == "cut_off"
    assert judged.answers[0, 0] is None, "an answer that is not judged right must not vote"


def test_a_tag_inside_the_text_is_no_word():
    tokens, mask = rows((CONFIG.vocab_size, RIGHT))
    tokens[0, 0, mask.sum() - 2] = CONFIG.vocab_size + 1  # the last number of the answer
    assert not judge(POLICY, [PROBLEM], tokens, mask).correct[0, 0]


def test_pass_curve_of_one_tag_is_the_unbiased_estimate():
    rng = np.random.default_rng(0)
    correct = rng.random((7, 1, 8)) < 0.4
    ks = [1, 2, 4, 8]
    expected = [pass_at_k(8, correct.sum(axis=(1, 2)), k) for k in ks]
    np.testing.assert_allclose(pass_curve(correct, ks), np.stack(expected, axis=1))


def test_pass_curve_over_tags_against_drawing_every_choice():
    rng = np.random.default_rng(1)
    correct = rng.random((3, 3, 2)) < 0.4
    ks = [1, 2, 3, 4, 5, 6]
    expected = np.zeros((3, len(ks)))
    for p, (i, k) in itertools.product(range(3), enumerate(ks)):
        base, extra = divmod(k, 3)
        found = []
        for more in itertools.combinations(range(3), extra):
            draws = [itertools.combinations(correct[p, t], base + (t in more)) for t in range(3)]
            found += [any(map(any, choice)) for choice in itertools.product(*draws)]
        expected[p, i] = np.mean(found)
    np.testing.assert_allclose(pass_curve(correct, ks), expected)


def test_summary_of_a_perfect_specialist():
    """Tag t alone solves problem t: coverage is 1, pass@1 a quarter, best tag from validation."""
    tokens, masks = [], []
    for solver in range(4):
        t, m = rows(*((CONFIG.vocab_size + tag, RIGHT if tag == solver else WRONG)
                      for tag in range(4)))
        tokens.append(t)
        masks.append(m)
    judged = judge(POLICY, [PROBLEM] * 4, np.concatenate(tokens), np.concatenate(masks))
    validation = judge(POLICY, [PROBLEM], tokens[3], masks[3])
    figures = summarise(POLICY, judged, judged, judged, validation).figures
    assert figures["pass@1"]["value"] == 0.25
    assert figures["pass@S"]["value"] == 1.0
    assert figures["pass@1_best_tag"]["tag"] == 3
    assert figures["pass@1_best_tag"]["value"] == 0.25
    assert figures["tag_usage"]["value"] == pytest.approx(4.0)
    assert figures["mutual_information"]["value"] == pytest.approx(0.0)
    assert len(prompt_ids(TOKENIZER, TASK.prompt(PROBLEM))) == 1 + 6
