# %% [markdown]
# # Thinking longer, thinking in parallel
#
# What can a trained policy still win at inference? Here is the policy of *Strategies in five
# minutes*, whose four tags stand for four ways to search: CoT-decoding over its tags, votes
# within a strategy and across strategies, and budgets on how long it may think. Nothing is
# trained, unless that notebook's run directory is not here: then a shorter run makes the policy
# first.
#
# It takes about two minutes on two CPU cores with the policy at hand, about six without.

# %%
# %matplotlib inline
import json
import os
from pathlib import Path

import jax
import ml_collections
import numpy as np
from IPython.display import display

from experiments import sft, sources
from experiments.configs import countdown, decode_compare
from experiments.decode_compare import (
    best_for_votes,
    chosen,
    compare_methods,
    draw_pool,
    entry,
    greedy,
    thinking_budget,
)
from experiments.sft import set_up
from reasoning.evaluation import reports
from reasoning.evaluation.estimators import difference_estimate, mean_estimate, voted_accuracy
from reasoning.evaluation.searches import cot_paths
from reasoning.sampling.allocation import interleave
from reasoning.sampling.sampler import OWN_TAG
from reasoning.sampling.voting import vote

# %%
sizes = {
    "smoke": dict(preset="0.01m", base=6, steps=4, problems=60, buckets=1, held_out=8, per_tag=4),
    "cpu": dict(preset="0.2m", base=1000, steps=400, problems=10_000, buckets=2, held_out=150,
                per_tag=16),
    "gpu": dict(preset="0.8m", base=2500, steps=1000, problems=20_000, buckets=3, held_out=500,
                per_tag=32),
    "tpu": dict(preset="0.8m", base=2500, steps=1000, problems=20_000, buckets=3, held_out=500,
                per_tag=32),
}
SCALE = os.environ.get("REASONING_NOTEBOOK_SCALE", jax.default_backend())
size = sizes[SCALE]
print(f"{SCALE}: {size}")

# %% [markdown]
# ## The policy
#
# A run directory holds its configuration, its tokenizer and the policies that its phases ended
# with: enough to go on from it anywhere. `sft.main` is `python -m experiments.sft` as a function.

# %%
RUN = Path(f"runs/strategies_{SCALE}")
if not (RUN / "policies/seed0/matched").is_dir():
    RUN = Path(f"runs/strategies_short_{SCALE}")
    config = countdown.get_config()
    config.arm, config.model.preset = "matched", size["preset"]
    config.pretrain.steps, config.finetune.steps = size["base"], size["steps"]
    for phase in (config.pretrain, config.finetune):
        phase.problems, phase.buckets = size["problems"], size["buckets"]
    config.evaluation.problems = config.evaluation.validation_problems = 20
    sft.main(config, str(RUN))

# %%
config = ml_collections.ConfigDict(json.loads((RUN / "config.json").read_text())["config"])
config.model.policy = str(RUN / "policies/seed0/matched")
config.evaluation.problems = config.evaluation.validation_problems = size["held_out"]
setup = set_up(config, ("matched",))
params = sources.first_params(config, setup.model, jax.random.key(0), setup.mesh)
policy, problems = setup.policy(params), setup.test

# %% [markdown]
# ## CoT-decoding
#
# [2402.10200](https://arxiv.org/abs/2402.10200): branch over the $k$ likeliest first tokens, go
# on greedily from each, and trust the paths whose answer is certain. The first token here is the
# strategy tag, so the branches are the strategies. A path's certainty is the gap between the two
# likeliest tokens, averaged over the answer's tokens:
#
# $$\Delta = \frac1n \sum_{t \in \text{answer}} \left(p(y^1_t) - p(y^2_t)\right).$$

# %%
paths = cot_paths(policy, problems, OWN_TAG, num_paths=4)
mixed = next((p for p, right in enumerate(paths.judged.correct) if 0 < right.sum() < 4), 0)
print(setup.task.prompt(problems[mixed]))
for i in range(4):
    judged = paths.judged
    print(f"  tag {judged.tags[mixed, i]}  p = {paths.branch_probs[mixed, i]:.2f}  "
          f"gap = {paths.deltas[mixed, i]:.3f}  {judged.reasons[mixed, i]:12} "
          f"{judged.completions[mixed, i]}")
answer = vote(paths.judged.votes[mixed], paths.deltas[mixed])
print(f"the answer whose paths' gaps have the largest sum: {answer}")

# %% [markdown]
# ## A vote within a strategy, a vote across strategies
#
# Self-consistency ([2203.11171](https://arxiv.org/abs/2203.11171)) samples $k$ completions and
# takes the answer that most of them give. A strategy that fails on a problem mostly fails in all
# of its samples, where another one may not: the same $k$ samples are drawn under one tag, the
# best on validation problems, and under all tags in turn.

# %%
test_key, validation_key = jax.random.split(jax.random.key(1))
pool = draw_pool(policy, problems, size["per_tag"], test_key, temperature=1.0)
validation = draw_pool(policy, setup.validation, size["per_tag"], validation_key, temperature=1.0)
ks = [k for k in (1, 2, 4, 8, 12, 16, 32) if k <= size["per_tag"]]
best = best_for_votes(validation, ks[-1])


def voted(tags: slice, k: int) -> np.ndarray:
    """How often a vote of k samples is right, by problem, the tags taking turns."""
    answers, correct = interleave(pool.votes[:, tags]), interleave(pool.correct[:, tags])
    return voted_accuracy(answers, correct, k)


curves = {
    "across strategies": [voted(slice(None), k) for k in ks],
    f"within tag {best}": [voted(slice(best, best + 1), k) for k in ks],
}
points = {name: (ks, [mean_estimate(x).as_dict() for x in found]) for name, found in curves.items()}
display(reports.estimate_curves({"": points}, "samples of a problem", "vote is right (%)"))
gain = difference_estimate(*(found[-1] for found in curves.values()))
print(f"across less within, {ks[-1]} samples: {100 * gain.value:+.1f} points "
      f"({100 * gain.low:+.1f} to {100 * gain.high:+.1f})")

# %% [markdown]
# ## Thinking budgets
#
# How much thinking is needed? After so many tokens the word `answer` is written in the policy's
# place, and it must answer at once (s1, [2501.19393](https://arxiv.org/abs/2501.19393)): greedy
# decoding under the best tag, and a vote of one greedy completion from each tag.

# %%
budgets = [0, 4, 8, 12, 16, 24, 32, 48]
tags = list(range(setup.model.num_strategies))
curves = {f"tag {best}": [], "a vote of all tags": []}
for most in budgets:
    budget = thinking_budget(policy, most, waits=0, word=None)
    judged = greedy(policy, problems, tags, budget)
    curves[f"tag {best}"].append(mean_estimate(judged.correct[:, best]).as_dict())
    curves["a vote of all tags"].append(entry(chosen(judged, judged.votes)))
points = {name: (budgets, found) for name, found in curves.items()}
display(reports.estimate_curves({"": points}, "tokens of thinking, at most", "right (%)"))

# %% [markdown]
# Where the budget cuts the first try in two, the policy does worse than without any thinking; then
# every try that is left to it is worth something.
#
# ## Side by side
#
# Every method with its price, those that draw samples at the same number of tokens.

# %%
settings = decode_compare.get_config("countdown").compare
settings.samples = min(12, 2 * size["per_tag"])
for name, spent in compare_methods(policy, problems, pool, best, settings).items():
    row = entry(spent)
    value, low, high = (100 * row[end] for end in ("value", "low", "high"))
    print(f"{name:40} {value:5.1f}% ({low:.1f} to {high:.1f})  {row['tokens']:4.0f} tokens  "
          f"{row['samples']:4.1f} samples")

# %% [markdown]
# *any right* is what a perfect verifier would pick out. Votes that weigh a sample by its
# probability do better than plain ones here, as wrong searches end in unlikely answers.
#
# ## What to change
#
# - `settings.floor`: branches of CoT-decoding less likely than this are left out.
# - `temperature` of `draw_pool`: hotter samples differ more, and are more often wrong.
# - `thinking_budget(policy, most, waits=1, word="from")`: where thinking would end, make it go
#   on.
#
# `docs/inference.md` tells what each method is worth on other tasks: on two of three, the vote
# across strategies shows no gain.
