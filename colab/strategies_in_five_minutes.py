# %% [markdown]
# # Strategies in five minutes
#
# Fine-tuned on several solutions per problem, a policy usually blurs them into one.
# Set-supervised fine-tuning (SSFT, [arXiv 2510.05132](https://arxiv.org/abs/2510.05132)) keeps
# them apart, one per *strategy tag*. This notebook trains both, plain and set-supervised, from
# the same base policy on the same traces, and asks: does a tag select a strategy, and do four
# tags together solve more than four samples of the blurred policy?
#
# It takes about five minutes on two CPU cores, and uses a GPU or a TPU where there is one.

# %%
# %matplotlib inline
import json
import os
from pathlib import Path

import jax
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure

from experiments import launch, quickstart, sources
from experiments.configs import countdown
from experiments.sft import fine_tune, pretrain, set_up, training_data
from experiments.show_task import describe
from reasoning.data.pipelines import collate, make_example
from reasoning.evaluation import reports
from reasoning.evaluation.policies import sample_and_judge
from reasoning.learning.assignment import match, matching_costs
from reasoning.models.strategies import spread_strategies
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters

# %% [markdown]
# The sizes follow the machine. Change them freely; then choose another `WORKDIR`, since a run
# directory holds one configuration.

# %%
sizes = {
    "smoke": dict(preset="0.01m", base=6, steps=4, problems=60, held_out=8, buckets=1),
    "cpu": dict(preset="0.2m", base=1500, steps=600, problems=10_000, held_out=200, buckets=2),
    "gpu": dict(preset="0.8m", base=2500, steps=1000, problems=20_000, held_out=1000, buckets=3),
    "tpu": dict(preset="0.8m", base=2500, steps=1000, problems=20_000, held_out=1000, buckets=3),
}
SCALE = os.environ.get("REASONING_NOTEBOOK_SCALE", jax.default_backend())
size = sizes[SCALE]
WORKDIR = Path(f"runs/strategies_{SCALE}")

config = countdown.get_config()
config.model.preset = size["preset"]
config.pretrain.steps, config.finetune.steps = size["base"], size["steps"]
config.pretrain.problems = config.finetune.problems = size["problems"]
config.pretrain.buckets = config.finetune.buckets = size["buckets"]
config.evaluation.problems = size["held_out"]
config.evaluation.validation_problems = size["held_out"] // 2
print(f"{SCALE}: {size}")

# %% [markdown]
# ## The task
#
# *Countdown*: combine all the numbers with +, - and x to make the target. Four searches look at
# the possibilities in different orders and give up after five tries, so each solves problems that
# others miss.

# %%
setup = set_up(config, ("mixed", "matched"))
task = setup.task
print(describe(task, setup.test[0]))
for strategy in task.strategies:
    solved = np.mean([task.trace(problem, strategy) is not None for problem in setup.test])
    print(f"{strategy:9} solves {100 * solved:.0f}% of the held-out problems")

# %% [markdown]
# ## A policy that knows the moves
#
# A base policy learns the moves from correct traces in random order: it can calculate, and
# follows no strategy. Everything that is trained lies in the run directory. Run a cell again and
# it reads from there; stop one, and it goes on where it was.

# %%
data = training_data(setup, config)


def open_run() -> Run:
    """The run directory, open for writing."""
    return Run(WORKDIR, "colab.strategies", config.to_dict())


with open_run() as run:
    sources.save_tokenizer(run.path, setup.text_format)
    base, spent = pretrain(run, setup, data, config, seed=0)
print(f"{spent['tokens']:,.0f} tokens in {spent['seconds']:.0f} s")

# %% [markdown]
# ## Two ways to fine-tune it
#
# Now every problem comes with the traces of the strategies that solve it. Nobody tells which
# strategy wrote which trace, and their order is shuffled. The two arms differ in one thing, the
# tag $g$ under which a trace $r$ of problem $x$ is trained:
#
# - **mixed**: one tag for all. This is plain fine-tuning on several solutions.
# - **matched**: SSFT. The policy's own likelihood says which tag fits a trace,
#
# $$L_{ij} = -\frac1L \sum_{t \le L} \log \pi(r^j_t \mid x, g_i, r^j_{<t}), \qquad
#   \hat\sigma = \arg\min_\sigma \sum_j L_{\sigma(j) j},$$
#
# where $\sigma$ gives each trace of a problem a tag of its own (the Hungarian algorithm finds the
# best). Then each trace is trained under its tag, and both loss and batches are those of the
# other arm. A tag that is slightly better at one kind of trace gets more of that kind.

# %%
policies, training = {}, {"base": spent}
with open_run() as run:
    for arm in ("mixed", "matched"):
        policies[arm], training[arm] = fine_tune(run, setup, base, data, arm, config, seed=0)

# %%
metrics = [json.loads(line) for line in (WORKDIR / "metrics.jsonl").read_text().splitlines()]
display(reports.learning_curves(metrics))

# %% [markdown]
# The right panel tells how undecided the tags are: from ln 4 = 1.39 nats, where all are alike,
# downwards as they part.
#
# ## The matching, seen on one problem
#
# The costs $L_{ij}$ of one problem's four traces under the four tags, before and after. At the
# start the tags lie close together, around the one that the base policy knows. The circles are
# the assignment that the next update would train.

# %%
def costs_of(params: dict, problem: object) -> jax.Array:
    """Nats per token of each strategy's trace (rows) under each tag (columns)."""
    texts = [task.trace(problem, strategy).completion for strategy in task.strategies]
    example = make_example(setup.text_format, task.prompt(problem), texts)
    batch = collate([example], example.longest, [0], len(texts), setup.text_format.pad_id)
    prefix = len(example.prompt) + 1 + config.loss.match_tokens
    return matching_costs(setup.model, params, batch, prefix, config.loss.match_tokens)


problem = next(p for p in setup.test if all(task.trace(p, s) for s in task.strategies))
figure = Figure(figsize=(8, 3), layout="constrained")
start = spread_strategies(base, launch.run_key(0, "tags"), config.loss.tag_noise)
shown = {"before": start, "after": policies["matched"]}
for ax, (title, params) in zip(figure.subplots(1, 2), shown.items()):
    costs = costs_of(params, problem)
    ax.imshow(costs, cmap="Blues", vmin=costs.min(), vmax=2 * costs.max() - costs.min())
    ax.scatter(match(costs), range(len(costs)), s=500, facecolors="none", edgecolors="crimson")
    for (row, column), cost in np.ndenumerate(np.array(costs)):
        ax.text(column, row, f"{cost:.2f}", ha="center", va="center", fontsize=8)
    ax.set_xticks(range(4), [f"tag {tag}" for tag in range(4)])
    ax.set_yticks(range(4), task.strategies)
    ax.set_title(title)
display(figure)

# %% [markdown]
# ## One problem, every tag
#
# Give the same problem to the matched policy under each of its tags, and read what it writes. The
# last column says which strategy the trace follows, found by replaying the searches. Below, the
# mixed policy, sampled four times.

# %%
def prompt(arm: str, problem: object, tags: list[int], temperature: float) -> None:
    """Print what an arm's policy writes about a problem under each of the tags."""
    policy, filters = setup.policy(policies[arm]), Filters(temperature=temperature)
    judged = sample_and_judge(policy, [problem], np.array(tags), jax.random.key(0), filters)
    print(f"{arm}, {task.prompt(problem)}")
    for row in judged.rows(task, [problem]):
        print(f"  tag {row['tag']}: {row['completion']}")
        print(f"         {row['reason']}, follows {row['strategy'] or 'no single strategy'}")


prompt("matched", problem, tags=[0, 1, 2, 3], temperature=0.0)
prompt("mixed", problem, tags=[0, 0, 0, 0], temperature=1.0)

# %% [markdown]
# Try a problem of your own: `prompt("matched", CountdownProblem((8, 20, 3), 25), ...)`, with
# `from reasoning.data.tasks.countdown import CountdownProblem`. Numbers up to 20, targets up to
# 40.
#
# ## On held-out problems
#
# Every arm draws as many samples of every problem. pass@S is the coverage of four samples: one
# under each tag of the matched policy, four under the one tag of the mixed policy. *greedy cover*
# is that of one greedy completion per tag.

# %%
def measure() -> tuple[None, dict]:
    """Figures of both arms, and their paired differences."""
    return None, quickstart.evaluate_arms(run, setup, policies, training, config, seed=0)


with open_run() as run:
    _, results = run.phase("seed0/results", measure)
print(reports.table(results))

# %% [markdown]
# Percent, with the half-width of the 95% interval over problems; the last line is the paired
# difference. First plot: of the traces under each tag, the share that follows each strategy
# (*none*: no single one explains it). A matched tag should stand for one strategy, where the
# mixed policy's one tag follows them all. Second plot: the coverage of k samples.

# %%
display(reports.tag_by_strategy(results["arms"], task.strategies))
display(reports.pass_at_k_curves(results["arms"]))

# %% [markdown]
# ## What to change
#
# - `config.loss.match_tokens`: how many tokens of a trace the matching reads. With 2 it sees
#   hardly more than the first number.
# - `config.loss.tag_noise`: how far apart the tags start.
# - `arm="random"` or `"fixed"` in place of `"mixed"`: four tags, and no matching.
# - `config.task.name = "countdown4"` with `config.model.max_length = 250`: four numbers, longer
#   searches.
#
# All four arms with five seeds, and reinforcement learning from here on, are `python -m
# experiments.quickstart`. *Thinking longer, thinking in parallel*, a notebook beside this one,
# spends more tokens on the policy just trained.
