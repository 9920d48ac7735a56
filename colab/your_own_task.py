# %% [markdown]
# # Your own task
#
# A task is one class: problems, a trace of each strategy, and an exact verifier. Here is one with
# two strategies, from nothing to a trained and evaluated policy, without a change in the library:
# *find the two numbers of a list that add up to a target*.
#
# It takes about five minutes on two CPU cores.

# %%
# %matplotlib inline
import itertools
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from IPython.display import display

from experiments import quickstart
from experiments.configs import countdown
from experiments.sft import fine_tune, pretrain, set_up, training_data
from experiments.show_task import describe
from reasoning.data.tasks import make_task
from reasoning.data.tasks.base import Trace, Verdict, hashed_stream, strategy_completions
from reasoning.data.tasks.steps import longest_opening, share_as_expected
from reasoning.evaluation import reports
from reasoning.evaluation.policies import sample_and_judge
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters

# %%
sizes = {
    "smoke": dict(preset="0.01m", base=6, steps=4, problems=60, held_out=8, buckets=1),
    "cpu": dict(preset="0.2m", base=3000, steps=1200, problems=10_000, held_out=400, buckets=1),
    "gpu": dict(preset="0.8m", base=2500, steps=1000, problems=20_000, held_out=1000, buckets=1),
    "tpu": dict(preset="0.8m", base=2500, steps=1000, problems=20_000, held_out=1000, buckets=1),
}
SCALE = os.environ.get("REASONING_NOTEBOOK_SCALE", jax.default_backend())
size = sizes[SCALE]
print(f"{SCALE}: {size}")

# %% [markdown]
# ## Two strategies
#
# A strategy writes its steps as text, words joined by single spaces. Ours search in different
# orders, and both may give up: so they solve different problems.
#
# - `pointers` sorts the numbers and adds the smallest and the largest; too low, and the smallest
#   goes; too high, and the largest does.
# - `complements` takes the numbers as they stand, and looks for what is missing to the target.

# %%
Problem = tuple[tuple[int, ...], int]  # the numbers as they stand, and the target
Steps = Iterator[tuple[str, tuple[int, int]]]  # a step as text, and the two numbers it looked at


def pointers(numbers: tuple[int, ...], target: int) -> Steps:
    """From both ends of the sorted numbers inwards."""
    left = sorted(numbers)
    while len(left) > 1:
        total = left[0] + left[-1]
        check = "yes" if total == target else "low" if total < target else "high"
        yield f"{left[0]} + {left[-1]} = {total} {check}", (left[0], left[-1])
        left = left[1:] if check == "low" else left[:-1]


def complements(numbers: tuple[int, ...], target: int) -> Steps:
    """What is missing to each number: is it there?"""
    for number in numbers:
        missing = target - number
        if missing > 0:
            found = missing in numbers and missing != number
            yield f"{target} - {number} = {missing} {'yes' if found else 'no'}", (number, missing)


def split_steps(steps: str) -> list[str]:
    """Cut a trace into its steps, five words and a check each."""
    words = steps.split()
    return [" ".join(words[i : i + 6]) for i in range(0, len(words), 6)]


SEARCHES = {"pointers": pointers, "complements": complements}

# %% [markdown]
# ## The task
#
# What the pipelines read of a task is the protocol in `reasoning/data/tasks/base.py`. `sample` is
# a pure function of seed and index; the split of a problem follows from a hash of its `key`. Two
# members are functions that the library has.

# %%
class Pairs:
    """Find the two of several different numbers that add up to the target."""

    name = "pairs"
    strategies = tuple(SEARCHES)
    num_traces = len(strategies)
    words = ("make", ":", "+", "-", "=", "low", "high", "yes", "no", "answer")
    stream, completions = hashed_stream, strategy_completions

    def __init__(self, size: int = 7, largest: int = 30, tries: int = 2) -> None:
        self.size, self.largest, self.tries = size, largest, tries
        self.max_number = 2 * largest

    def sample(self, seed: int, index: int) -> Problem:
        """Numbers drawn uniformly, until a strategy that is drawn as well reaches the target."""
        rng = random.Random(f"pairs/{seed}/{index}")
        strategy = rng.choice(self.strategies)
        while True:
            numbers = tuple(rng.sample(range(1, self.largest + 1), self.size))
            problem = numbers, sum(rng.sample(numbers, 2))
            if self.trace(problem, strategy):
                return problem

    def key(self, problem: Problem) -> str:
        return f"{sorted(problem[0])} {problem[1]}"

    def prompt(self, problem: Problem) -> str:
        return f"{' '.join(map(str, problem[0]))} make {problem[1]} :"

    def trace(self, problem: Problem, strategy: str) -> Trace | None:
        """The steps up to the first that says yes; None if that takes too many."""
        steps = list(itertools.islice(SEARCHES[strategy](*problem), self.tries))
        for count, (text, pair) in enumerate(steps, start=1):
            if text.endswith("yes"):
                written = " ".join(text for text, _ in steps[:count])
                return Trace(written, f"{pair[0]} {pair[1]}")
        return None


# %% [markdown]
# ## Its judge
#
# The verifier must be exact: reinforcement learning finds every hole in it. It also says why an
# answer is wrong. `check_trace` and `recognise` only serve to look at policies: whether the steps
# are true, and which search a trace follows. `practice` writes what the base policy learns from:
# true steps in random order, which follow no strategy.

# %%
class JudgedPairs(Pairs):
    """The task with its verifier, and what tells strategies apart."""

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        if not answer:
            return Verdict(False, "no_answer")
        if re.fullmatch("[0-9]{1,3} [0-9]{1,3}", answer) is None:
            return Verdict(False, "malformed")
        a, b = map(int, answer.split())
        if a == b or not {a, b} <= set(problem[0]):
            return Verdict(False, "wrong_numbers")
        correct = a + b == problem[1]
        # In a vote "3 8" and "8 3" are one answer.
        return Verdict(correct, "correct" if correct else "wrong_value", key=f"{sorted((a, b))}")

    def check_trace(self, problem: Problem, strategy: str | None, steps: str) -> float:
        expected = [text for text, _ in self._searched(problem, strategy)]
        if strategy:
            return share_as_expected(split_steps(steps), expected)
        return float(np.mean([text in expected for text in split_steps(steps)] or [0.0]))

    def recognise(self, problem: Problem, steps: str) -> str | None:
        shared = {}
        for name in self.strategies:
            pairs = zip(split_steps(steps), (text for text, _ in self._searched(problem, name)))
            shared[name] = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
        return longest_opening(shared)

    def practice(self, problem: Problem, rng: random.Random) -> str:
        steps = list(self._searched(problem, None))
        missed = [text for text, _ in steps if not text.endswith("yes")]
        text, pair = rng.choice([step for step in steps if step[0].endswith("yes")])
        written = [*rng.sample(missed, rng.randint(0, min(2, len(missed)))), text]
        return Trace(" ".join(written), f"{pair[0]} {pair[1]}").completion

    def _searched(self, problem: Problem, strategy: str | None) -> Steps:
        names = self.strategies if strategy is None else (strategy,)
        return itertools.chain.from_iterable(SEARCHES[name](*problem) for name in names)


# %% [markdown]
# `MODULE:ATTRIBUTE` names a class of one's own wherever a task is named; `__main__` is the module
# of this notebook. `make_task` first looks at fifty problems, as in every program: the words must
# be declared, and the traces right by the task's own judge (`check_task`). That a trace is
# recognised as its strategy's is worth a check as well.

# %%
NAME = "__main__:JudgedPairs"
task = make_task(NAME)
for problem in itertools.islice(task.stream("train", seed=0), 2):
    print(describe(task, problem), "\n")

problems = list(itertools.islice(task.stream("train", seed=0), 1000))
for strategy in task.strategies:
    traces = {p: trace for p in problems if (trace := task.trace(p, strategy))}
    assert all(task.check_trace(p, strategy, trace.steps) == 1 for p, trace in traces.items())
    assert all(task.recognise(p, trace.steps) == strategy for p, trace in traces.items())
    print(f"{strategy} solves {100 * len(traces) / len(problems):.0f}%")

# %% [markdown]
# ## Train
#
# From here on it is one of the tasks. Both arms start from the same base policy and see the same
# batches; *matched* finds a tag for each trace by its likelihood, *mixed* trains all under one.

# %%
config = countdown.get_config()
config.task.name = NAME
config.model.preset, config.model.num_strategies, config.model.max_length = size["preset"], 2, 48
config.loss.match_tokens = 12  # two steps
config.pretrain.steps, config.finetune.steps = size["base"], size["steps"]
for phase in (config.pretrain, config.finetune):
    phase.problems, phase.buckets = size["problems"], size["buckets"]
config.evaluation.problems = size["held_out"]
config.evaluation.validation_problems = size["held_out"] // 2

setup = set_up(config, ("mixed", "matched"))
data = training_data(setup, config)
policies, spent = {}, {}
with Run(Path(f"runs/pairs_{SCALE}"), "colab.pairs", config.to_dict()) as run:
    base, spent["base"] = pretrain(run, setup, data, config, seed=0)
    for arm in ("mixed", "matched"):
        policies[arm], spent[arm] = fine_tune(run, setup, base, data, arm, config, seed=0)

# %% [markdown]
# ## Evaluate
#
# In percent, with the half-width of the 95% interval over held-out problems. pass@S is the
# coverage of two samples: one under each tag of the matched policy, two of the mixed one.

# %%
with Run(Path(f"runs/pairs_{SCALE}"), "colab.pairs", config.to_dict()) as run:
    _, results = run.phase(
        "seed0/results",
        lambda: (None, quickstart.evaluate_arms(run, setup, policies, spent, config, seed=0)),
    )
print(reports.table(results))
display(reports.tag_by_strategy(results["arms"], task.strategies))

# %% [markdown]
# What the policy writes about a problem of your own, under each tag:

# %%
mine = ((5, 17, 30, 8, 21, 12, 3), 29)
policy, filters = setup.policy(policies["matched"]), Filters(temperature=0.0)
judged = sample_and_judge(policy, [mine], np.arange(2), jax.random.key(0), filters)
for row in judged.rows(task, [mine]):
    print(f"tag {row['tag']} ({row['strategy']}): {row['completion']}  [{row['reason']}]")

# %% [markdown]
# ## What to change
#
# - `config.task.arguments.tries = 3`: the strategies fail less often, and differ less.
# - A third strategy: a function, an entry in `SEARCHES`, and `config.model.num_strategies = 3`.
# - `experiments.rl`: its functions train this task further by the verifier's reward, judged on
#   the host; a verifier written in `jnp` (`reasoning/rewards/device.py`) makes the step one
#   program.
#
# To keep the task, put its imports, its strategies and its classes into a file `my_task.py`. From
# that file's directory every program that trains takes `--config.task.name=my_task:JudgedPairs`
# (`docs/ideas/task.md`).
