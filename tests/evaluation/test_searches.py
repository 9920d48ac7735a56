"""Judged CoT-decoding paths and beams: against the arrays that they are made of."""

import dataclasses

import jax
import numpy as np
import pytest

from reasoning.data.formats import TextFormat
from reasoning.data.tasks import make_task
from reasoning.data.tokenizers import train_tokenizer
from reasoning.evaluation.policies import Policy, judge, sample_and_judge
from reasoning.evaluation.searches import cot_paths, judged_beams
from reasoning.models.config import ModelConfig
from reasoning.rewards.host import task_reward
from reasoning.sampling.decoding import answer_masks, cot_decode, mean_gaps
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, pad_prompts

TASK = make_task("group_words", length=3)
TOKENIZER = train_tokenizer(
    (), vocab_size=None, words=TASK.words, numbers="whole", max_number=TASK.max_number
)
FORMAT = TextFormat(TOKENIZER)
PROBLEMS = [TASK.sample(0, index) for index in range(5)]
NEW = 10


@pytest.fixture(scope="module")
def policy(rough_params):
    config = ModelConfig(
        vocab_size=TOKENIZER.vocab_size, num_strategies=3, d_model=16, num_layers=1, num_heads=2,
        num_kv_heads=2, head_dim=8, d_ff=16, max_length=24,
    )
    return Policy(rough_params(config), config, FORMAT, TASK, task_reward(TASK), NEW)


def answer_by_last_word(policy, problems, tokens, mask):
    """The judge, but that every completion's answer is its last word, ended or not."""
    judged = judge(policy, problems, tokens, mask)
    answers = np.empty(judged.answers.shape, object)
    for index in np.ndindex(answers.shape):
        answers[index] = (judged.completions[index].split() or [None])[-1]
    return dataclasses.replace(judged, answers=answers, votes=answers)


@pytest.mark.parametrize("tag", [1, OWN_TAG])
def test_paths_are_those_of_cot_decoding(policy, tag, monkeypatch):
    monkeypatch.setattr("reasoning.evaluation.searches.judge", answer_by_last_word)
    paths = cot_paths(policy, PROBLEMS, tag, 4, batch_problems=2)
    ids, mask = pad_prompts([FORMAT.prompt_ids(TASK.prompt(p)) for p in PROBLEMS], FORMAT.pad_id)
    plain = jax.tree.map(np.asarray, cot_decode(
        policy.params, ids, mask, np.full(5, tag), config=policy.config, num_paths=4,
        max_new_tokens=NEW, stop_ids=FORMAT.stop_ids, pad_id=FORMAT.pad_id,
    ))
    for p, k in np.ndindex(5, 4):
        row = plain.tokens[p, k][plain.mask[p, k]]
        assert paths.judged.completions[p, k] == FORMAT.completion_text(row.tolist())
        total = plain.log_probs[p, k, 0 if tag == OWN_TAG else 1 :].sum()
        assert paths.log_probs[p, k] == pytest.approx(total, abs=1e-4)
    masks = answer_masks(FORMAT, plain.tokens, plain.mask, paths.judged.answers)
    np.testing.assert_allclose(paths.deltas, mean_gaps(plain.gaps, masks), atol=1e-6)
    assert (paths.deltas > 0).sum() > 10 and len(np.unique(paths.deltas)) > 10
    np.testing.assert_allclose(paths.branch_probs, plain.branch_probs, atol=1e-6)


def test_a_floor_takes_votes_away(policy, monkeypatch):
    monkeypatch.setattr("reasoning.evaluation.searches.judge", answer_by_last_word)
    paths = cot_paths(policy, PROBLEMS, 1, 4)
    floor = float(np.median(paths.branch_probs))
    kept, likely = paths.likely(floor), paths.branch_probs >= floor
    assert (kept[likely] == paths.judged.votes[likely]).all()
    assert [vote for vote in kept[~likely] if vote is not None] == []
    assert sum(vote is not None for vote in kept[likely]) > 5
    np.testing.assert_array_equal(paths.likely(0.0), paths.judged.votes)


def test_one_beam_is_greedy(policy):
    beams = judged_beams(policy, PROBLEMS, 2, 1)
    greedy = sample_and_judge(
        policy, PROBLEMS, np.array([2]), jax.random.key(0), Filters(temperature=0.0)
    )
    assert beams.completions.tolist() == greedy.completions.tolist()
    assert judged_beams(policy, PROBLEMS, 2, 3).completions.shape == (5, 3)
