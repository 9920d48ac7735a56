r"""What does each way of spending tokens at inference win? One policy, one budget, one table.

    python -m experiments.decode_compare --workdir=runs/decode \
        --config=experiments/configs/decode_compare.py:multiplication
    python -m experiments.decode_compare --workdir=runs/compare_countdown \
        --config=experiments/configs/decode_compare.py:countdown

Trains a policy whose tags stand for strategies, and decodes held-out problems by each method of
`METHODS`: greedy, beams, CoT-decoding, votes within the strategy that votes best on validation
problems and across all strategies, weighted votes, best-of-n, early stopping, forced thinking
budgets. Methods that draw samples get the same tokens: where a strategy writes less, more of them.
A second table gives the samples to the tags by the rules of `reasoning.sampling.allocation`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import launch
from experiments.sft import (
    Data,
    Setup,
    check_rows,
    fine_tune,
    pretrain,
    set_up,
    training_data,
)
from reasoning.data import pipelines
from reasoning.data.tasks.base import ANSWER
from reasoning.evaluation import reports
from reasoning.evaluation.estimators import (
    accuracy_against_tokens,
    difference_estimate,
    mean_estimate,
    voted_accuracy,
)
from reasoning.evaluation.policies import Judged, Policy, judge, sample_problems
from reasoning.evaluation.searches import Paths, cot_paths, judged_beams
from reasoning.runtime.runs import Run
from reasoning.sampling import allocation
from reasoning.sampling.budgets import Budget
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG
from reasoning.sampling.voting import (
    best_of_n,
    mean_token_probability,
    samples_until_decided,
    samples_until_likely,
    samples_until_solved,
    sequence_probability,
    vote,
)

PROGRAM = "experiments.decode_compare"


@dataclasses.dataclass(frozen=True)
class Pool:
    """Samples of P problems, G under each of S tags, as arrays `[P, S, G]`.

    Attributes:
      votes: str, what each answer counts as; None without one.
      correct: bool.
      lengths: int, tokens.
      probabilities: float, of a token on average (`mean_token_probability`).
      likelihoods: float, of the whole sample, relative to the problem's likeliest.
    """

    votes: np.ndarray
    correct: np.ndarray
    lengths: np.ndarray
    probabilities: np.ndarray
    likelihoods: np.ndarray

    def of(self, tag: int) -> "Pool":
        """The samples of one tag alone."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Pool(**{name: part[:, tag : tag + 1] for name, part in parts.items()})


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a method wins and costs.

    Attributes:
      accuracy: `[P]` in [0, 1].
      tokens, samples: of a problem, on average.
    """

    accuracy: np.ndarray
    tokens: float
    samples: float


# The policy and its samples


def train(
    run: Run, setup: Setup, data: Data, config: ml_collections.ConfigDict, seed: int
) -> Policy:
    """The policy whose tags stand for strategies."""
    base, _ = pretrain(run, setup, data, config, seed)
    params, _ = fine_tune(run, setup, base, data, config.arm, config, seed)
    return setup.policy(params)


def make_data(setup: Setup, config: ml_collections.ConfigDict) -> Data:
    """Traces in the order of the strategies that the tags stand for; or in random order, for the
    arm to assign."""
    if not config.compare.named:
        return training_data(setup, config)
    examples = pipelines.named_examples(
        setup.task, setup.text_format, config.seed, config.finetune.problems
    )
    check_rows(setup, examples)
    return Data([], examples)


def draw_pool(
    policy: Policy, problems: list[Any], per_tag: int, key: jax.Array, temperature: float
) -> Pool:
    """Samples of every tag for each problem, `[P, S, per_tag]`."""
    num_tags = policy.config.num_strategies
    tags = np.repeat(np.arange(num_tags), per_tag)
    drawn = sample_problems(policy, problems, tags, key, Filters(temperature))
    judged = judge(policy, problems, drawn.tokens, drawn.mask)
    written = drawn.mask & (np.arange(drawn.mask.shape[2]) > 0)  # the tag was given
    arrays = (
        judged.votes, judged.correct, judged.lengths,
        mean_token_probability(drawn.log_probs, written | drawn.mask & ~written.any(2)[..., None]),
        sequence_probability(drawn.log_probs, written),
    )
    return Pool(*(array.reshape(len(problems), num_tags, per_tag) for array in arrays))


def best_for_votes(pool: Pool, k: int) -> int:
    """The tag within which votes of k samples are right most often, on validation problems."""
    tags = range(pool.votes.shape[1])
    scores = [voted_accuracy(pool.votes[:, t], pool.correct[:, t], k).mean() for t in tags]
    return int(np.argmax(scores))


# The methods, each a row of the table


def sampled(pool: Pool, budget: float, weights: str | None = None, rule: Any = vote) -> Spent:
    """Choose among as many samples, the pool's tags in turn, as the budget of tokens pays."""
    votes, correct = allocation.interleave(pool.votes), allocation.interleave(pool.correct)
    k = int(np.clip(round(budget / pool.lengths.mean()), 1, votes.shape[1]))
    given = None if weights is None else allocation.interleave(getattr(pool, weights))
    return Spent(voted_accuracy(votes, correct, k, given, rule), k * pool.lengths.mean(), k)


def stopped(pool: Pool, budget: float, enough: Callable[[np.ndarray], int]) -> Spent:
    """Vote across the tags, but draw no more once `enough` says so."""
    most = int(np.clip(round(budget / pool.lengths.mean()), 1, pool.votes[0].size))
    votes, correct, lengths = (
        allocation.interleave(part)[:, :most] for part in (pool.votes, pool.correct, pool.lengths)
    )
    used = np.array([[enough(row)] for row in votes])
    tokens, right = accuracy_against_tokens(votes, correct, lengths, used)
    return Spent(right[:, 0].astype(float), float(tokens.mean()), float(used.mean()))


def any_right(pool: Pool, budget: float) -> Spent:
    """A verifier picks a right sample where there is one: no way of choosing does better."""
    k = int(np.clip(round(budget / pool.lengths.mean()), 1, pool.votes[0].size))
    correct = allocation.interleave(pool.correct)[:, : pool.correct[0].size // k * k]
    groups = correct.reshape(len(correct), -1, k)
    return Spent(groups.any(axis=2).mean(axis=1), k * pool.lengths.mean(), k)


def greedy(policy: Policy, problems: list[Any], tags: list[int], budget: Budget | None) -> Judged:
    """One greedy completion under each of the tags, `[P, R]`."""
    drawn = sample_problems(
        policy, problems, np.array(tags), jax.random.key(0), Filters(0.0), budget=budget
    )
    return judge(policy, problems, drawn.tokens, drawn.mask)


def chosen(
    judged: Judged, votes: np.ndarray, weights: np.ndarray | None = None, rule: Any = vote
) -> Spent:
    """Choose among all of a problem's completions by their `votes` and `weights`, both `[P, R]`.

    Those without a vote cost as well.
    """
    correct = judged.correct & (votes != None)  # noqa: E711 - of every element
    right = voted_accuracy(votes, correct, votes.shape[1], weights, rule)
    return Spent(right, float(judged.lengths.sum(axis=1).mean()), votes.shape[1])


def thinking_budget(policy: Policy, most: int, waits: int, word: str | None) -> Budget:
    """One row's budget in a task: thinking ends with the word `answer`."""
    tokenizer = policy.text_format.tokenizer
    (end_id,) = tokenizer.encode(ANSWER)
    wait_ids = tuple(tokenizer.encode(word)) if word else ()
    return Budget(jnp.array([most]), jnp.array([waits]), end_id, (end_id,), wait_ids)


def compare_methods(
    policy: Policy, problems: list[Any], pool: Pool, best: int, settings: ml_collections.ConfigDict
) -> dict[str, Spent]:
    """Every row of the table, in its order."""
    tags = list(range(policy.config.num_strategies))
    within, budget = pool.of(best), settings.samples * pool.lengths.mean()
    one, every = greedy(policy, problems, [best], None), greedy(policy, problems, tags, None)
    beams = judged_beams(policy, problems, best, settings.branches)
    over_tags = cot_paths(policy, problems, OWN_TAG, len(tags))
    under_tag = cot_paths(policy, problems, best, settings.branches)
    half = int(np.median(one.lengths)) // 2

    def cot(paths: Paths, rule: Any) -> Spent:
        return chosen(paths.judged, paths.likely(settings.floor), paths.deltas, rule)

    def forced(most: int, waits: int) -> Spent:
        counts = thinking_budget(policy, most, waits, settings.wait)
        judged = greedy(policy, problems, [best], counts)
        return chosen(judged, judged.votes)

    rows = {
        "greedy, best strategy": chosen(one, one.votes),
        "half of its thinking, then the answer": forced(half, 0),
        "one sample, best strategy": sampled(within, 0.0),
        "greedy vote over strategies": chosen(every, every.votes),
        "beam search, best strategy": Spent(
            beams.correct[:, 0].astype(float), float(beams.lengths.sum(axis=1).mean()),
            settings.branches,
        ),
        "CoT-decoding over strategies, sum": cot(over_tags, vote),
        "CoT-decoding over strategies, max": cot(over_tags, best_of_n),
        "CoT-decoding, best strategy, sum": cot(under_tag, vote),
        "CoT-decoding, best strategy, max": cot(under_tag, best_of_n),
        "vote within the best strategy": sampled(within, budget),
        "vote across strategies": sampled(pool, budget),
        "weighted by token probability": sampled(pool, budget, "probabilities"),
        "weighted by probability": sampled(pool, budget, "likelihoods"),
        "stopped when decided": stopped(pool, budget, samples_until_decided),
        "stopped when likely (0.95)": stopped(pool, budget, samples_until_likely),
        "likeliest sample": sampled(pool, budget, "likelihoods", best_of_n),
        "likeliest sample by token": sampled(pool, budget, "probabilities", best_of_n),
        "any right, best strategy": any_right(within, budget),
        "any right, across strategies": any_right(pool, budget),
    }
    if settings.wait:
        rows["thinking again once"] = forced(policy.max_new_tokens, 1)
    return rows


def tag_shares(paths: Paths, num_tags: int) -> np.ndarray:
    """The policy's distribution over tags `[P, S]`, from its branches over the first token.

    Where none of them is a tag, all tags are alike.
    """
    shares = np.full((len(paths.branch_probs), num_tags), 1e-12)
    problem, path = np.nonzero(paths.judged.tags >= 0)
    shares[problem, paths.judged.tags[problem, path]] = paths.branch_probs[problem, path]
    return shares / shares.sum(axis=1, keepdims=True)


def compare_allocations(
    pool: Pool, validation: Pool, shares: np.ndarray, n: int
) -> dict[str, list[Spent]]:
    """What 1, 2, 4, ... of n samples win under each rule of allocation: a vote of all of them, or
    those up to the first that a verifier finds right.

    Args:
      validation: samples that the prior of Thompson sampling is taken from.
      shares: the policy's distribution over tags `[P, S]`.
    """
    num_problems, num_tags, _ = pool.votes.shape
    told, flat = pool.correct.astype(float), np.ones((num_tags, 2))
    prior = allocation.beta_prior(validation.correct)
    thompson, ucb1 = allocation.thompson, allocation.ucb1
    # Each problem begins with another tag, so that the first sample is not always the same one's.
    in_turn = (allocation.uniform(num_tags, n) + np.arange(num_problems)[:, None]) % num_tags
    voted = {
        "in turn": in_turn,
        "the policy's own": allocation.apportion(shares, n),
        "by agreement, Thompson": allocation.by_agreement(pool.votes, n, thompson, flat),
    }
    verified = {
        "in turn, verifier": in_turn,
        "Thompson, verifier": allocation.by_verifier(told, n, thompson, prior),
        "UCB1, verifier": allocation.by_verifier(told, n, ucb1, flat),
    }
    ks = [k for k in (1, 2, 4, 8, 16, 32) if k < n] + [n]
    curves = {}
    for name, tags in {**voted, **verified}.items():
        votes, correct, lengths = (
            allocation.take(part, tags) for part in (pool.votes, pool.correct, pool.lengths)
        )
        used, weights, rule = np.tile(ks, (num_problems, 1)), None, vote
        if name in verified:
            solved = np.array([[samples_until_solved(row)] for row in correct])
            used, weights, rule = np.minimum(used, solved), correct.astype(float), best_of_n
        tokens, right = accuracy_against_tokens(votes, correct, lengths, used, weights, rule)
        curves[name] = [
            Spent(right[:, i].astype(float), float(tokens[:, i].mean()), float(used[:, i].mean()))
            for i in range(len(ks))
        ]
    return curves


# The study


ACROSS, WITHIN = "vote across strategies", "vote within the best strategy"


def entry(spent: Spent) -> dict[str, Any]:
    """A row of results.json."""
    accuracy = mean_estimate(spent.accuracy).as_dict()
    return {**accuracy, "tokens": spent.tokens, "samples": spent.samples}


def one_seed(
    run: Run, setup: Setup, data: Data, config: ml_collections.ConfigDict, seed: int
) -> dict[str, Any]:
    """Train, decode by every method, compare."""
    policy = train(run, setup, data, config, seed)
    settings, num_tags = config.compare, setup.model.num_strategies
    per_tag = int(np.ceil(settings.spare * settings.samples))
    test_key, validation_key = jax.random.split(launch.run_key(seed, "evaluate"))
    temperature = config.evaluation.temperature
    pool = draw_pool(policy, setup.test, per_tag, test_key, temperature)
    validation = draw_pool(policy, setup.validation, per_tag, validation_key, temperature)
    best = best_for_votes(validation, settings.samples)
    rows = compare_methods(policy, setup.test, pool, best, settings)
    shares = tag_shares(cot_paths(policy, setup.test, OWN_TAG, num_tags), num_tags)
    curves = compare_allocations(pool, validation, shares, settings.samples)
    gain = difference_estimate(rows[ACROSS].accuracy, rows[WITHIN].accuracy).as_dict()
    return {
        "best_strategy": setup.task.strategies[best] if config.compare.named else f"tag {best}",
        "per_tag": [mean_estimate(pool.correct[:, t].mean(axis=1)).as_dict()
                    for t in range(num_tags)],
        "methods": {name: entry(row) for name, row in rows.items()},
        "across_less_within": gain,
        "allocation": {name: [entry(each) for each in curve] for name, curve in curves.items()},
    }


def study(
    run: Run, setup: Setup, data: Data, config: ml_collections.ConfigDict
) -> dict[str, Any]:
    """Every seed, and all together."""
    seeds = [
        run.phase(
            f"seed{seed}/results",
            lambda seed=seed: (None, one_seed(run, setup, data, config, seed)),
        )[1]
        for seed in range(config.seed, config.seed + config.seeds)
    ]
    joined = seeds[0] if len(seeds) == 1 else reports.figures_over_seeds(seeds)
    results = {"task": setup.task.name, "problems": len(setup.test), **joined}
    curves = {
        name: ([point["tokens"] for point in curve], curve)
        for name, curve in results["allocation"].items()
    }
    figure = reports.estimate_curves(
        {setup.task.name: curves}, "tokens of a problem", "right (%)", log_x=False
    )
    figure.savefig(run.path / "plots" / "allocation.png", dpi=120)
    return {**results, "seeds": seeds}


def table(results: Mapping[str, Any]) -> str:
    """Methods by accuracy in percent with its 95% interval, tokens and samples of a problem."""
    lines = [f"{results['task']}, {results['problems']} problems, seeds {len(results['seeds'])}",
             f"{'':40}{'right, %':>20}{'tokens':>8}{'samples':>9}"]
    allocated = {f"{name}, {curve[-1]['samples']:.1f} samples": curve[-1]
                 for name, curve in results["allocation"].items()}
    for rows in (results["methods"], allocated):
        for name, row in rows.items():
            value, low, high = (100 * row[end] for end in ("value", "low", "high"))
            right = f"{value:.1f} ({low:.1f} to {high:.1f})"
            lines.append(f"{name:40}{right:>20}{row['tokens']:8.0f}{row['samples']:9.1f}")
        lines.append("")
    gain = results["across_less_within"]
    lines.append(f"{ACROSS}, less {WITHIN}: {100 * gain['value']:+.1f} points "
                 f"({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})")
    return "\n".join(lines)


def check(setup: Setup, config: ml_collections.ConfigDict) -> None:
    """Refuse settings of the comparison that cannot work (ValueError)."""
    settings = config.compare
    num_tags, num_known = setup.model.num_strategies, len(setup.task.strategies)
    if settings.named and (config.arm != "fixed" or config.pretrain.steps or num_known != num_tags):
        raise ValueError(
            f"compare.named=True: needs arm=fixed, pretrain.steps=0 and model.num_strategies="
            f"{num_known}, a tag for each of {', '.join(setup.task.strategies)}."
        )
    if settings.samples < num_tags:
        raise ValueError(
            f"compare.samples={settings.samples}: must be at least one for each of the "
            f"{num_tags} tags."
        )
    if settings.spare < 1:
        raise ValueError(f"compare.spare={settings.spare}: must be at least 1.")
    if not 1 <= settings.branches <= setup.model.vocab_size:
        raise ValueError(
            f"compare.branches={settings.branches}: must lie between 1 and the "
            f"{setup.model.vocab_size} tokens."
        )


def build(config: ml_collections.ConfigDict) -> Setup:
    """What the configuration describes.

    Raises:
      ValueError: what cannot be compared, in one sentence.
    """
    launch.check_study(config, "compare", "decode_compare.py")
    setup = set_up(config, (config.arm,))
    check(setup, config)
    return setup


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Train and compare every seed, then report."""
    launch.run_study(PROGRAM, config, workdir, build, make_data, study, table)


if __name__ == "__main__":
    launch.start(main)
