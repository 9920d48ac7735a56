# %% [markdown]
# # Reinforcement learning, one program
#
# A step of reinforcement learning with a verifiable reward samples, judges and updates. Where the
# verifier is written in `jnp` all of it compiles: many steps, and many seeds, are then a single
# XLA program, which never waits for Python. This notebook runs GRPO, which trains every token,
# and global forking policy optimization (GFPO, [arXiv
# 2510.05132](https://arxiv.org/abs/2510.05132), as we read it: `docs/algorithms.md`), which trains
# nothing but the choice of the strategy tag, with eight seeds each, and draws the curves with
# intervals.
#
# It takes about five minutes on two CPU cores, most of it GRPO.

# %%
# %matplotlib inline
import dataclasses
import os
import time
from pathlib import Path

import jax
import numpy as np
from IPython.display import display

from experiments.configs import group_words
from experiments.rl import rl_config, rl_optimizer, rl_problems, start_seeds
from experiments.rl_steps import chosen_reward, devices_for, seeds_side_by_side
from experiments.sft import Data, fine_tune, pretrain, set_up
from experiments.show_task import describe
from reasoning.data.pipelines import named_examples
from reasoning.evaluation import reports
from reasoning.evaluation.estimators import runs_estimate
from reasoning.evaluation.policies import sample_and_judge
from reasoning.learning.algorithms import ALGORITHMS
from reasoning.learning.rl_updates import all_seeds, make_rl_step, scan_steps, seeds_sharding
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG

# Each core of a CPU takes its share of the seeds; this says nothing to a GPU or a TPU.
jax.config.update("jax_num_cpu_devices", min(os.cpu_count(), 8))

# %%
sizes = {
    "smoke": dict(preset="0.01m", sft=4, problems=60, steps=4, prompts=4, samples=4, held_out=8),
    "cpu": dict(preset="0.2m", sft=1000, problems=5000, steps=40, prompts=16, samples=8,
                held_out=400),
    "gpu": dict(preset="0.2m", sft=1000, problems=5000, steps=100, prompts=32, samples=16,
                held_out=500),
    "tpu": dict(preset="0.2m", sft=1000, problems=5000, steps=100, prompts=32, samples=16,
                held_out=500),
}
SCALE = os.environ.get("REASONING_NOTEBOOK_SCALE", jax.default_backend())
size, SEEDS = sizes[SCALE], range(8)
print(f"{SCALE}, {jax.device_count()} devices: {size}")

# %% [markdown]
# ## A task where the choice of the strategy matters
#
# The product of five permutations of three points. Multiplied step by step, from the left or in
# pairs, it is easy; the strategy `direct` says the product at once, which a small policy cannot
# compute reliably.

# %%
config = group_words.get_config("S3")
config.task.arguments.length = 5
config.task.strategies = ("direct", "left", "tree")
config.model.preset, config.model.num_strategies, config.model.max_length = size["preset"], 3, 40
config.arm = "fixed"  # tag s stands for the s-th strategy
config.pretrain.steps, config.finetune.steps = 0, size["sft"]
config.finetune.problems, config.finetune.buckets = size["problems"], 1
config.finetune.learning_rate = 5e-3
config.evaluation.problems = config.evaluation.validation_problems = size["held_out"]

for rl in (config.grpo, config.gfpo):
    rl.steps, rl.problems = size["steps"], size["problems"] // 2
    rl.prompts, rl.samples, rl.microbatches = size["prompts"], size["samples"], 1

setup = set_up(config, ("fixed",))
print(describe(setup.task, setup.test[0]))

# %% [markdown]
# ## The policy to start from
#
# Fine-tuned for a short while on traces of all three, each under its tag. It draws its tag
# itself, and has no reason yet to prefer one. Run this cell again and it reads the run directory.

# %%
examples = named_examples(setup.task, setup.text_format, config.seed, config.finetune.problems)
data = Data([], examples)
with Run(Path(f"runs/rl_start_{SCALE}"), "colab.rl_start", config.to_dict()) as run:
    first, _ = pretrain(run, setup, data, config, seed=0)
    start, _ = fine_tune(run, setup, first, data, "fixed", config, seed=0)


def accuracy(params: dict, tag: int, seed: int = 0) -> float:
    """pass@1 on held-out problems under a tag, or under the policy's own choice (OWN_TAG)."""
    policy, tags, key = setup.policy(params), np.full(4, tag), jax.random.key(seed)
    return sample_and_judge(policy, setup.test, tags, key, Filters()).correct.mean()


for tag, strategy in enumerate(setup.task.strategies):
    print(f"tag {tag}, {strategy:7} {100 * accuracy(start, tag):5.1f}% right")
print(f"its own tag     {100 * accuracy(start, OWN_TAG):5.1f}% right")

# %% [markdown]
# ## The step, and the program
#
# One step is a pure function of state, prompts and key:
#
# 1. $G$ completions of each prompt are sampled; the policy draws the tag $g$, then the tokens
#    $o$.
# 2. The verifier gives rewards $r_i$; in the group of a prompt, $A_i = (r_i - \bar r) /
#    \mathrm{std}(r)$.
# 3. **GRPO** maximises $\frac{1}{|o|} \sum_t \min(\rho_t A, \mathrm{clip}(\rho_t, 1 \pm \epsilon)
#    A)$, the mean over a completion's tokens, $\rho_t = \pi / \pi_\mathrm{old}$, with a KL to the
#    policy at the start. **GFPO** has the same surrogate at one position, the fork: $\rho = \pi(g
#    \mid x) / \pi_\mathrm{old}(g \mid x)$. It trains the strategies' embeddings alone, which is our
#    setting: so the traces behind a tag stay as they are.
#
# `scan_steps` makes many steps of it, and `all_seeds` many seeds. On an accelerator the seeds are
# vmapped; on a CPU, which one of them fills, they take turns. Several devices share them.

# %%
grpo, gfpo = (dataclasses.asdict(ALGORITHMS[name]) for name in ("grpo", "gfpo"))
for choice in grpo:
    if grpo[choice] != gfpo[choice]:
        print(f"{choice:13} grpo {grpo[choice]!s:25} gfpo {gfpo[choice]}")

problems = rl_problems(setup, config.grpo, config.seed)
reward = chosen_reward(setup, config.grpo)  # (prompts, completions, metadata) -> verdicts, in jnp
side_by_side, num_devices = seeds_side_by_side(len(SEEDS)), devices_for(len(SEEDS))


def reinforce(name: str) -> tuple[dict, dict]:
    """Parameters `[seeds, ...]` after all steps, and metrics `[seeds, steps]`."""
    settings = config[name]
    rl, optimizer = rl_config(setup, settings, early_exit=not side_by_side), rl_optimizer(settings)
    step = make_rl_step(rl, optimizer, reward)  # (state, prompts, key) -> (state, metrics)
    program = jax.jit(all_seeds(scan_steps(step), side_by_side, num_devices), donate_argnums=0)

    everything = np.arange(len(problems.problems))
    state, plan, keys = start_seeds(
        [start] * len(SEEDS), [everything] * len(SEEDS), settings, rl, SEEDS
    )
    prompts = jax.tree.map(lambda x: x[plan], problems.prompts)  # [seeds, steps, prompts, ...]
    arguments = jax.device_put((state, prompts, keys), seeds_sharding(num_devices))

    begun = time.monotonic()
    compiled = program.lower(*arguments).compile()
    ready = time.monotonic()
    state, metrics = jax.block_until_ready(compiled(*arguments))
    seconds, tokens = time.monotonic() - ready, metrics["num_tokens"].sum()
    print(f"{name}: compiled in {ready - begun:.0f} s; {len(SEEDS)} seeds x {settings.steps} steps "
          f"in {seconds:.0f} s, {tokens / seconds:,.0f} sampled tokens/s")
    return jax.device_get((state.params, metrics))


runs = {name: reinforce(name) for name in ("gfpo", "grpo")}

# %% [markdown]
# ## Curves with intervals
#
# The mean over eight seeds and its 95% interval (Student's t), each point over several steps. The
# seeds share the policy they start from and differ in prompts and samples: the intervals are
# those of reinforcement learning alone.

# %%
window = max(1, size["steps"] // 10)


def curve(values: np.ndarray) -> tuple[np.ndarray, list[dict]]:
    """Values `[seeds, steps]` as means over windows of steps, with intervals over the seeds."""
    parts = values.reshape(len(SEEDS), -1, window).mean(axis=2)
    steps = window * np.arange(1, parts.shape[1] + 1)
    return steps, [runs_estimate(column).as_dict() for column in parts.T]


panels = {
    "reward": {name: curve(metrics["reward"]) for name, (_, metrics) in runs.items()},
    "share of the tag 'direct'": {
        name: curve(metrics["tags/share"][:, :, 0]) for name, (_, metrics) in runs.items()
    },
}
display(reports.estimate_curves(panels, "step", "%"))

# %% [markdown]
# ## On held-out problems
#
# The policy's own tag, before and after.

# %%
before = accuracy(start, OWN_TAG)
for name, (params, _) in runs.items():
    policies = [jax.tree.map(lambda x, i=i: x[i], params) for i in SEEDS]
    gains = [accuracy(policy, OWN_TAG) - before for policy in policies]
    gain = runs_estimate(gains)
    print(f"{name}: {100 * before:.1f}% -> {100 * (before + gain.value):.1f}%, "
          f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})")

# %% [markdown]
# GFPO can only choose among what the tags can do: it leaves `direct`, and ends where the best tag
# was. It makes 16 updates of a batch here, which cost little since they read prompts alone, and
# GRPO one. GRPO may also make the traces better, at the price of moving every parameter.
#
# ## What to change
#
# - `config.grpo.algorithm`: any preset of `docs/algorithms.md`, as `"dapo"` or `"rloo"`; a single
#   choice by `config.grpo.override`, as `config.grpo.override.kl_coef = 0.0`.
# - `config.gfpo.algorithm = "gfpo_exact"`: the expectation over all tags in place of a sampled
#   one.
# - `config.gfpo.trained = "all"`: the same gradient through every parameter.
# - `config.grpo.samples`: more completions of each prompt make better updates.
#
# `python -m experiments.rl` does all this from a configuration, with validation and checkpoints.
