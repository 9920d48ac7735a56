"""Allocations against hand-computed pools, enumeration and scipy, and the properties they have."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.sampling.allocation import (
    apportion,
    beta_prior,
    by_agreement,
    by_policy,
    by_verifier,
    interleave,
    take,
    thompson,
    ucb1,
    uniform,
)

quick = settings(max_examples=50, deadline=None)
UNUSED = np.random.default_rng(0)  # UCB1 draws nothing


class Scripted:
    """An index that draws the tags it is told, and keeps what it was told of wins and losses."""

    def __init__(self, tags: list[int]):
        self.tags, self.wins, self.losses = tags, [], []

    def __call__(self, wins, losses, generator):
        tag = self.tags[len(self.wins)]
        self.wins.append(wins.tolist())
        self.losses.append(losses.tolist())
        return np.eye(len(wins))[tag]


def regret(tags: np.ndarray, rewards: np.ndarray, best: float) -> float:
    """Reward missed per problem against always drawing the best tag."""
    return tags.shape[1] * best - take(rewards, tags).sum(axis=1).mean()


# without feedback


def test_uniform_by_hand():
    assert uniform(3, 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert uniform(4, 2).tolist() == [0, 1]
    assert uniform(2, 0).tolist() == []


@quick
@given(st.integers(1, 9), st.integers(0, 40))
def test_uniform_is_as_even_as_possible(num_tags, n):
    counts = np.bincount(uniform(num_tags, n), minlength=num_tags)
    assert counts.sum() == n and counts.max() - counts.min() <= 1


def test_policy_draws_follow_its_distribution():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    tags = by_policy(probabilities, 4000, seed=1)
    shares = np.stack([np.bincount(row, minlength=3) for row in tags]) / 4000
    deviation = np.sqrt(probabilities * (1 - probabilities) / 4000)
    assert (abs(shares - probabilities) <= 4 * deviation).all()


def test_policy_draws_of_a_problem_are_its_own():
    """They depend neither on the budget nor on the other problems."""
    probabilities = np.full((3, 4), 0.25)
    tags = by_policy(probabilities, 50, seed=1)
    np.testing.assert_array_equal(by_policy(probabilities, 20, seed=1), tags[:, :20])
    probabilities[0] = [1, 0, 0, 0]
    np.testing.assert_array_equal(by_policy(probabilities, 50, seed=1)[1:], tags[1:])
    assert (tags[0] != tags[1]).any() and (by_policy(probabilities, 50, seed=2)[1] != tags[1]).any()


def test_apportion_by_hand():
    """p / 1, 3, 5, ...: .5 .17 .1 .07; .3 .1 .06; .2 .067 .04, in descending order."""
    tags = apportion([[0.5, 0.3, 0.2]], 8)
    assert tags[0].tolist() == [0, 1, 2, 0, 0, 1, 0, 2]
    assert np.bincount(apportion([[0.5, 0.3, 0.2]], 10)[0]).tolist() == [5, 3, 2]


@quick
@given(st.integers(1, 6), st.integers(1, 30))
def test_apportion_of_equal_shares_is_uniform(num_tags, n):
    tags = apportion(np.full((2, num_tags), 1 / num_tags), n)
    np.testing.assert_array_equal(tags, np.tile(uniform(num_tags, n), (2, 1)))


@quick
@given(st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any))
def test_apportion_meets_shares_that_whole_counts_can_meet(counts):
    shares = np.array([counts]) / sum(counts)
    tags = apportion(shares, sum(counts))
    assert np.bincount(tags[0], minlength=len(counts)).tolist() == counts
    np.testing.assert_array_equal(apportion(shares, 1), tags[:, :1])


@pytest.mark.parametrize("allocate", [by_policy, apportion])
def test_allocations_accept_rounded_rows_and_refuse_what_is_no_distribution(allocate):
    assert allocate([[0.3331, 0.3331, 0.3331]], 3).shape == (1, 3)
    for row in ([0.5, 0.4], [1.2, -0.2], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="probabilities: each row"):
            allocate([row], 3)
    with pytest.raises(ValueError, match=r"probabilities: shape \(2,\)"):
        allocate([0.5, 0.5], 3)


# pools


def test_take_by_hand():
    samples = np.array([[["a0", "a1"], ["b0", "b1"]], [["c0", "c1"], ["d0", "d1"]]])
    tags = [[1, 1, 0], [0, 1, 0]]
    assert take(samples, tags).tolist() == [["b0", "b1", "a0"], ["c0", "d0", "c1"]]
    assert take(samples, [1, 0]).tolist() == [["b0", "a0"], ["d0", "c0"]]


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
def test_take_uses_every_sample_once(seed, num_tags, per_tag):
    order = np.repeat(np.arange(num_tags), per_tag)
    tags = np.random.default_rng(seed).permuted(np.tile(order, (3, 1)), axis=1)
    samples = np.arange(3 * num_tags * per_tag).reshape(3, num_tags, per_tag)
    taken = take(samples, tags)
    np.testing.assert_array_equal(np.sort(taken, axis=1), samples.reshape(3, -1))
    np.testing.assert_array_equal(taken // per_tag % num_tags, tags)
    for tag in range(num_tags):
        own = [row[drawn == tag] for row, drawn in zip(taken, tags)]
        np.testing.assert_array_equal(own, samples[:, tag])


def test_take_refuses_what_the_pool_does_not_hold():
    samples = np.zeros((2, 3, 2))
    with pytest.raises(ValueError, match="draws one tag 3 times, and the pool holds 2"):
        take(samples, [1, 0, 1, 1])
    for tags in ([3], [-1]):
        with pytest.raises(ValueError, match="tags: must be between 0 and 2"):
            take(samples, tags)
    with pytest.raises(ValueError, match=r"tags: shape \(1, 2\)"):
        take(samples, [[0, 1]])
    with pytest.raises(ValueError, match=r"samples: shape \(2, 6\)"):
        take(samples.reshape(2, 6), [0])


def test_interleaved_slices_hold_one_sample_of_each_tag():
    """The first S samples of a tag-major array all come from the first tag."""
    P, S, G = 2, 6, 11
    tags = np.broadcast_to(np.arange(S)[:, None], (P, S, G))
    groups = interleave(tags).reshape(P, G, S)
    assert (groups == np.arange(S)).all()
    assert not (tags.reshape(P, G, S) == np.arange(S)).all()


def test_interleave_keeps_samples_of_a_group_together():
    samples = np.arange(24).reshape(2, 3, 4)  # problem, tag, sample
    assert interleave(samples)[1].tolist() == [12, 16, 20, 13, 17, 21, 14, 18, 22, 15, 19, 23]
    np.testing.assert_array_equal(interleave(samples), take(samples, uniform(3, 12)))
    with pytest.raises(ValueError, match=r"shape \(2, 12\)"):
        interleave(samples.reshape(2, 12))


# what an index is worth


def test_ucb1_by_hand():
    """ln 6 = 1.791759: 4/5 + sqrt(3.583519 / 5) and 0/1 + sqrt(3.583519 / 1)."""
    worth = ucb1(np.array([4.0, 0.0]), np.array([1.0, 1.0]), UNUSED)
    np.testing.assert_allclose(worth, [1.646583, 1.893018], atol=1e-6)
    assert ucb1(np.zeros(2), np.array([0.0, 1.0]), UNUSED).tolist() == [math.inf, 0.0]
    assert np.isfinite(ucb1(np.full(2, 0.01), np.full(2, 0.01), UNUSED)).all()


def test_thompson_draws_from_the_posterior():
    """Marginals against scipy's Beta, and how often an arm is best against the integral."""
    wins, losses = np.array([3.0, 1.5]), np.array([2.0, 1.0])
    generator = np.random.default_rng(0)
    draws = np.stack([thompson(wins, losses, generator) for _ in range(4000)])
    first, second = (scipy.stats.beta(a, b) for a, b in zip(wins, losses))
    for column, posterior in zip(draws.T, (first, second)):
        assert scipy.stats.kstest(column, posterior.cdf).pvalue > 1e-3
    best, _ = scipy.integrate.quad(lambda p: first.pdf(p) * second.cdf(p), 0, 1)
    share = (draws[:, 0] > draws[:, 1]).mean()
    assert abs(share - best) < 4 * math.sqrt(best * (1 - best) / 4000)


def test_thompson_needs_a_prior():
    with pytest.raises(ValueError, match="prior: Thompson sampling starts"):
        by_verifier(np.ones((1, 2, 2)), 1, thompson, np.zeros((2, 2)))


# bandits


def test_a_bandit_is_told_the_rewards_of_what_it_drew():
    rewards = np.array([[[1.0, 0.25, 0.9], [0.0, 1.0, 0.9]]])
    index = Scripted([0, 1, 0, 1, 0])
    tags = by_verifier(rewards, 5, index, [[2.0, 1.0], [1.0, 0.5]])
    assert tags.tolist() == [[0, 1, 0, 1, 0]]
    assert index.wins == [[2, 1], [3, 1], [3, 1], [3.25, 1], [3.25, 2]]
    assert index.losses == [[1, 0.5], [1, 0.5], [1, 1.5], [1.75, 1.5], [1.75, 1.5]]


def test_ucb1_on_a_pool_by_hand():
    """Tag 0 is always right, tag 1 never; each once, then the bound of tag 1 is highest at ln 6.

    1 + sqrt(2 ln t / (t - 1)) against sqrt(2 ln t): 2.18 1.18, 2.05 1.48, 1.96 1.67, 1.90 1.79,
    1.85 1.89 at t = 2 to 6.
    """
    rewards = np.zeros((30, 2, 8))
    rewards[:, 0] = 1
    tags = by_verifier(rewards, 7, ucb1, np.zeros((2, 2)))
    assert {tuple(row) for row in tags[:, :2]} == {(0, 1), (1, 0)}, "ties are broken at random"
    assert (tags[:, 2:] == [0, 0, 0, 0, 1]).all()


def test_a_prior_decides_what_is_drawn_first():
    """UCB1 draws the tag of the better prior, of 10 draws each, until it has lost often enough."""
    prior = np.array([[2.0, 8.0], [8.0, 2.0], [5.0, 5.0]])
    tags = by_verifier(np.zeros((3, 3, 20)), 20, ucb1, prior)
    assert (tags[:, 0] == 1).all() and (tags != 1).any(axis=1).all()
    strong = by_verifier(np.zeros((200, 3, 1)), 1, thompson, 100 * prior)
    assert (strong == 1).all()


def test_agreement_by_hand():
    """Of a, b, b the majority is b: the first sample, which agreed with itself, no longer does."""
    votes = np.array([[["a", None], ["b", "b"]]], object)
    index = Scripted([0, 1, 1, 0])
    by_agreement(votes, 4, index, np.zeros((2, 2)))
    assert index.wins[:2] == [[0, 0], [1, 0]]
    assert index.wins[2] in ([1, 0], [0, 1])  # a tie between a and b
    assert index.wins[3] == [0, 2] and index.losses[3] == [1, 0]
    index = Scripted([0, 0, 0])
    by_agreement(np.full((1, 1, 3), None), 3, index, np.zeros((1, 2)))
    assert index.wins[2] == [0] and index.losses[2] == [2]


def test_ties_of_the_leading_answer_are_a_problems_own():
    """a of tag 0 against b of tag 1, in 40 problems."""
    votes = np.broadcast_to(np.array([["a", "a"], ["b", "b"]], object), (40, 2, 2))
    index = Scripted([0, 1, 0] * 40)
    by_agreement(votes, 3, index, np.zeros((2, 2)))
    after_two = index.wins[2::3]
    assert [1, 0] in after_two and [0, 1] in after_two


def test_agreement_draws_the_tag_that_leads_right_or_wrong():
    """Tag 1 always says the same, the others something else every time; no verdict is read."""
    votes = np.array([f"{i}" for i in range(20 * 3 * 30)], object).reshape(20, 3, 30)
    votes[:, 1] = "same"
    tags = by_agreement(votes, 30, thompson, np.ones((3, 2)))
    shares = [(tags == tag).mean() for tag in range(3)]
    assert shares[1] > 0.6 > 0.2 > max(shares[0], shares[2])


@pytest.mark.parametrize("index, least", [(thompson, 0.5), (ucb1, 0.25)])
def test_regret_is_lower_than_that_of_uniform(index, least):
    """Bernoulli arms of 0.9, 0.4, 0.4, 0.2, 64 draws: uniform misses 64 * (0.9 - 0.475) = 27.2.

    For every seed, the part of it that is saved is at least `least`.
    """
    rates = np.array([0.9, 0.4, 0.4, 0.2])[:, None]
    for seed in range(3):
        rewards = (np.random.default_rng(seed).random((50, 4, 64)) < rates).astype(float)
        prior = np.ones((4, 2)) if index is thompson else np.zeros((4, 2))
        even = regret(np.tile(uniform(4, 64), (50, 1)), rewards, 0.9)
        assert even == pytest.approx(27.2, abs=1.5)
        tags = by_verifier(rewards, 64, index, prior, seed)
        assert regret(tags, rewards, 0.9) < (1 - least) * even


def test_a_problem_is_a_bandit_of_its_own():
    """What it draws depends neither on the other problems nor on the budget."""
    generator = np.random.default_rng(5)
    rewards = (generator.random((4, 3, 12)) < 0.5).astype(float)
    votes = generator.choice(["a", "b", "c"], size=(4, 3, 12)).astype(object)
    other_rewards, other_votes = rewards.copy(), votes.copy()
    other_rewards[1], other_votes[1] = 1 - rewards[1], "a"
    for allocate, pool, other in (
        (by_verifier, rewards, other_rewards), (by_agreement, votes, other_votes),
    ):
        tags = allocate(pool, 20, thompson, np.ones((3, 2)), 3)
        np.testing.assert_array_equal(allocate(pool, 9, thompson, np.ones((3, 2)), 3), tags[:, :9])
        changed = allocate(other, 20, thompson, np.ones((3, 2)), 3)
        np.testing.assert_array_equal(changed[[0, 2, 3]], tags[[0, 2, 3]])
        assert (changed[1] != tags[1]).any()
        assert (allocate(pool, 20, thompson, np.ones((3, 2)), 4) != tags).any()


@pytest.mark.parametrize("index", [thompson, ucb1])
def test_a_whole_pool_is_drawn_without_repeats(index):
    """Also where the tag that always wins is used up first."""
    rewards = np.zeros((2, 3, 4))
    rewards[:, 2] = 1
    tags = by_verifier(rewards, 12, index, np.full((3, 2), 0.5))
    assert [np.bincount(row).tolist() for row in tags] == [[4, 4, 4]] * 2
    assert (tags[:, :4] == 2).mean() > 0.3
    with pytest.raises(ValueError, match="n=13: the pool holds 12 samples"):
        by_verifier(rewards, 13, index, np.ones((3, 2)))


def test_bandits_refuse_what_they_cannot_read():
    rewards, prior = np.ones((2, 3, 4)), np.ones((3, 2))
    for wrong in (-0.5 * rewards, 2 * rewards, math.nan * rewards):
        with pytest.raises(ValueError, match=r"rewards: must be in \[0, 1\]"):
            by_verifier(wrong, 2, ucb1, prior)
    for wrong in (np.ones((2, 2)), -prior):
        with pytest.raises(ValueError, match=r"prior: must be \[3 tags, 2\]"):
            by_verifier(rewards, 2, ucb1, wrong)
    with pytest.raises(ValueError, match=r"votes: shape \(2, 3\)"):
        by_agreement(np.full((2, 3), "a"), 2, ucb1, prior)


# priors


def test_beta_prior_by_hand():
    """Of 4 samples 3, 3, 0 are correct: m = 7/14, v = 3/16, correlation (3 - 1) / 3, a + b = 1/2.

    Rates that all agree are held at a + b = 99; problems all right or all wrong at 1/99.
    """
    correct = np.zeros((3, 1, 4), bool)
    correct[:2, 0, :3] = True
    np.testing.assert_allclose(beta_prior(correct), [[0.25, 0.25]])
    alike, apart = np.array([[[1, 0]], [[0, 1]]]), np.array([[[1, 1]], [[0, 0]]])
    np.testing.assert_allclose(beta_prior(alike), [[49.5, 49.5]])
    np.testing.assert_allclose(beta_prior(apart), [[1 / 198, 1 / 198]])


def test_beta_prior_finds_the_distribution_of_pass_rates():
    generator = np.random.default_rng(2)
    truth = np.array([[2.0, 5.0], [0.5, 0.3]])
    rates = generator.beta(truth[:, 0], truth[:, 1], size=(5000, 2))
    correct = generator.random((5000, 2, 8)) < rates[:, :, None]
    np.testing.assert_allclose(beta_prior(correct), truth, rtol=0.1)


def test_beta_prior_rules_no_tag_out():
    """A tag that never was, or always was, correct."""
    correct = np.zeros((10, 2, 4), bool)
    correct[:, 1] = True
    prior = beta_prior(correct)
    np.testing.assert_allclose(prior, [[99 / 42, 99 * 41 / 42], [99 * 41 / 42, 99 / 42]])


def test_beta_prior_needs_problems_and_samples():
    for shape in ((1, 2, 4), (4, 2, 1)):
        with pytest.raises(ValueError, match="at least two problems, and two samples"):
            beta_prior(np.ones(shape))
