"""CoT-decoding, cut thinking and beam search against plain loops over full forward passes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.data.formats import TextFormat
from reasoning.data.tokenizers import train_tokenizer
from reasoning.sampling.budgets import Budget
from reasoning.sampling.decoding import (
    answer_masks,
    beam_search,
    cot_decode,
    cut_thinking,
    mean_gaps,
    thinking_lengths,
)
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, pad_prompts, probability_gap, sample

PAD, EOS, END, NEW = 0, 2, 17, 8
PROMPTS = [[5, 6, 7], [1, 9, 12, 3, 20, 28], [13, 13, 4, 21]]
IDS, MASK = pad_prompts(PROMPTS, PAD)
STATIC = dict(max_new_tokens=NEW, stop_ids=(EOS,), pad_id=PAD)


@pytest.fixture(scope="module")
def next_logits(forward, config, params):
    """A function of ids, logits `[V+S]` of the token after them: one forward pass, no cache."""

    def score(ids):
        row = np.full((1, 16), PAD, np.int32)
        row[0, : len(ids)] = ids
        return np.asarray(forward(config, params, row))[0, len(ids) - 1].astype(np.float64)

    return score


def softmax(logits):
    exps = np.exp(logits - logits.max())
    return exps / exps.sum()


# CoT-decoding


def plain_path(next_logits, prompt, given, rank):
    """One path, one forward pass a token: tokens, gaps and the branch's probability."""
    ids, gaps, branch = [*prompt, *given], [], None
    gaps += [np.subtract(*np.sort(softmax(next_logits(prompt)))[:-3:-1])] if given else []
    while len(gaps) < NEW:
        probs = softmax(next_logits(ids))
        ranked = np.argsort(-probs, kind="stable")
        gaps.append(probs[ranked[0]] - probs[ranked[1]])
        ids.append(int(ranked[rank if branch is None else 0]))
        branch = probs[ids[-1]] if branch is None else branch
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :], gaps, branch


@pytest.mark.parametrize("tag", [1, OWN_TAG])
def test_cot_decode_is_the_plain_loop(config, params, next_logits, tag):
    paths = jax.tree.map(
        np.asarray,
        cot_decode(params, IDS, MASK, np.full(3, tag), config=config, num_paths=4, **STATIC),
    )
    given = [] if tag == OWN_TAG else [config.vocab_size + tag]
    opened = set()
    for p, rank in itertools.product(range(3), range(4)):
        tokens, gaps, branch = plain_path(next_logits, PROMPTS[p], given, rank)
        n = len(tokens)
        assert paths.mask[p, rank].sum() == n
        assert paths.tokens[p, rank, :n].tolist() == tokens
        np.testing.assert_allclose(paths.gaps[p, rank, :n], gaps, atol=1e-5)
        assert paths.branch_probs[p, rank] == pytest.approx(branch, abs=1e-6)
        opened.add(tokens[len(given)])
    assert len(opened) > 4 and (np.diff(paths.branch_probs) <= 0).all()
    assert (paths.gaps[~paths.mask] == 0).all()


def test_the_first_path_is_greedy_decoding(config, params):
    tags = np.array([0, 1, 2])
    paths = cot_decode(params, IDS, MASK, tags, config=config, num_paths=4, **STATIC)
    keys = jnp.broadcast_to(jax.random.key(3), (3, 1))
    greedy = sample(params, IDS, MASK, tags[:, None], keys, Filters(0.0), config=config, **STATIC)
    np.testing.assert_array_equal(paths.tokens[:, 0], greedy.tokens)


def test_branches_are_bounded(config, params):
    with pytest.raises(ValueError, match="num_paths=0: must be between 1 and the 29 tokens"):
        cot_decode(params, IDS, MASK, np.zeros(3, int), config=config, num_paths=0, **STATIC)


def test_probability_gap_by_hand():
    logits = np.log([[0.5, 0.2, 0.3], [0.4, 0.4, 0.2], [1e-9, 1.0, 1e-9]]) + 7
    np.testing.assert_allclose(probability_gap(jnp.asarray(logits)), [0.2, 0, 1], atol=1e-6)


# The answer's tokens


@pytest.fixture(scope="module")
def text_format():
    words = ("answer", "=", ":")
    return TextFormat(
        train_tokenizer((), vocab_size=None, words=words, numbers="whole", max_number=60)
    )


def completion(text_format, text, room=12):
    ids = [text_format.tokenizer.vocab_size, *text_format.completion_ids(text)]  # after a tag
    mask = np.arange(room) < len(ids)
    return np.array([*ids, *[text_format.pad_id] * (room - len(ids))]), mask


def test_answer_masks_by_hand(text_format):
    texts = ["5 5 = 25 answer 5", "3 = 13 answer 13 5", "1 2 = 3", "7 answer 7"]
    answers = ["5", "13 5", None, "8"]
    rows = [completion(text_format, text) for text in texts]
    tokens, masks = (np.stack(part) for part in zip(*rows))
    found = answer_masks(text_format, tokens, masks, answers)
    assert [np.flatnonzero(row).tolist() for row in found] == [[6], [5, 6], [], []]
    gaps = np.arange(12) * np.ones((4, 1))
    np.testing.assert_array_equal(mean_gaps(gaps, found), [6, 5.5, 0, 0])


def test_answer_masks_of_pieces():
    lines = ["So the answer is 1234.", "The result is 567 apples.", "What is 12 + 30?"] * 20
    text_format = TextFormat(train_tokenizer(lines, vocab_size=310))
    text = "12 + 1234 is 1246. So the answer is 1246."
    ids, mask = completion(text_format, text, room=60)
    assert mask.sum() < 60
    (found,) = answer_masks(text_format, ids[None], mask[None], ["1246"])
    kept = np.flatnonzero(found)
    assert (np.diff(kept) == 1).all() and kept[0] > mask.sum() / 2, "the last place, in one run"
    assert text_format.tokenizer.decode_any(ids[kept].tolist()).strip() == "1246"


# Budgets: inside the sampler, and by asking again


def test_thinking_lengths_by_hand():
    tokens = [
        [30, 4, 5, END, 6, EOS, PAD, PAD],  # two tokens, then the end
        [30, END, 6, EOS, PAD, PAD, PAD, PAD],
        [30, 4, 5, EOS, PAD, PAD, PAD, PAD],  # ends without an end of thinking
        [30, 4, 5, 6, 7, 8, 9, 10],  # never ends
    ]
    mask = np.cumsum(np.array(tokens) == EOS, axis=1) - (np.array(tokens) == EOS) == 0
    assert thinking_lengths(tokens, mask, END, (EOS,)).tolist() == [2, 1 - 1, 2, 7]


def budgeted(config, params, max_thinking, waits=0, wait_ids=(), tags=(0, 1, 2)):
    """Greedy completions under a budget, `[3, N]`."""
    counts = dict(max_thinking=jnp.full((3, 1), max_thinking), waits=jnp.full((3, 1), waits))
    budget = Budget(**counts, end_id=END, end_ids=(END, 4), wait_ids=wait_ids).check()
    keys = jnp.broadcast_to(jax.random.key(3), (3, 1))
    return sample(params, IDS, MASK, np.array(tags)[:, None], keys, Filters(0.0), config=config,
                  budget=budget, **STATIC)


def test_a_budget_is_the_same_as_asking_again(config, params):
    """Truncation in the loop gives what a new prompt with the cut thinking gives."""
    free = budgeted(config, params, NEW)
    lengths = thinking_lengths(free.tokens, free.mask, END, (EOS,))
    compared = 0
    for budget in (0, 2, 4):
        cut = budgeted(config, params, budget)
        prompts = cut_thinking(PROMPTS, free.tokens[:, None], lengths[:, None], budget, (END, 4))
        ids, mask = pad_prompts(prompts, PAD)
        keys = jnp.broadcast_to(jax.random.key(3), (3, 1))
        asked = sample(params, ids, mask, np.full((3, 1), OWN_TAG), keys, Filters(0.0),
                       config=config, max_new_tokens=NEW - 3, stop_ids=(EOS,), pad_id=PAD)
        for p, row in enumerate(np.asarray(cut.tokens).tolist()):
            if lengths[p] < budget:
                assert row == free.tokens[p].tolist(), "it ended before the budget was used up"
            else:
                again = [*prompts[p][len(PROMPTS[p]) :], *np.asarray(asked.tokens[p]).tolist()]
                assert row == again[:NEW]
                compared += 1
    assert compared >= 5


# Beam search


def enumerate_all(next_logits, prompt, given, length):
    """The log-prob of every completion of `length` tokens after what is given, or up to <eos>."""
    found, open_ = {}, {tuple(given): 0.0}
    for _ in range(length):
        after = {}
        for ids, total in open_.items():
            log_probs = np.log(softmax(next_logits([*prompt, *ids])))
            for token, log_prob in enumerate(log_probs):
                (found if token == EOS else after)[(*ids, token)] = total + log_prob
        open_ = after
    return {**found, **open_}


def test_wide_beams_find_the_best_of_all(config, params, next_logits):
    num_ids = config.vocab_size + config.num_strategies
    beams = jax.tree.map(np.asarray, beam_search(
        params, IDS, MASK, np.array([1, 0, 2]), config=config, num_beams=num_ids,
        **{**STATIC, "max_new_tokens": 3},
    ))
    for p, tag in enumerate([1, 0, 2]):
        every = enumerate_all(next_logits, PROMPTS[p], [config.vocab_size + tag], 2)
        best = sorted(every.items(), key=lambda item: -item[1])[:num_ids]
        np.testing.assert_allclose(beams.log_probs[p], [total for _, total in best], atol=1e-4)
        for row, mask, (ids, _) in list(zip(beams.tokens[p], beams.mask[p], best))[:8]:
            assert row[mask].tolist() == list(ids)


def test_one_beam_is_greedy_and_more_are_no_worse(config, params):
    tags, keys = np.array([0, 1, 2]), jnp.broadcast_to(jax.random.key(3), (3, 1))
    greedy = sample(params, IDS, MASK, tags[:, None], keys, Filters(0.0), config=config, **STATIC)
    totals = []
    for num_beams in (1, 3):
        beams = beam_search(params, IDS, MASK, tags, config=config, num_beams=num_beams, **STATIC)
        totals.append(np.asarray(beams.log_probs[:, 0]))
        if num_beams == 1:
            np.testing.assert_array_equal(beams.tokens[:, 0], greedy.tokens)
    np.testing.assert_allclose(totals[0], np.asarray(greedy.log_probs)[:, 1:].sum(1), atol=1e-4)
    assert (totals[1] >= totals[0] - 1e-5).all()


def test_beams_of_a_policy_that_chooses_its_tag(config, params, next_logits):
    num_ids = config.vocab_size + config.num_strategies
    beams = beam_search(params, IDS, MASK, np.full(3, OWN_TAG), config=config, num_beams=num_ids,
                        **{**STATIC, "max_new_tokens": 2})
    every = enumerate_all(next_logits, PROMPTS[0], [], 2)
    best = sorted(every.values(), reverse=True)[:num_ids]
    np.testing.assert_allclose(np.asarray(beams.log_probs)[0], best, atol=1e-4)
