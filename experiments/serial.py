r"""Why intermediate tokens matter: answers at once, after fillers, or after a written trace.

    python -m experiments.serial --config=experiments/configs/serial.py --workdir=runs/serial
    python -m experiments.serial --workdir=runs/serial_groups \
        --config=experiments/configs/serial.py:groups

A decoder of constant depth computes in parallel, and an answer that it gives at once is the work of
so many layers; a trace makes a step of each token (2402.12875). For each problem, depth and arm,
policies are trained from nothing, each arm on the same number of tokens, and judged on held-out
problems:

    direct   prompt, answer
    filler   prompt, dots, answer: room to compute, but no state is written (2404.15758)
    trace    prompt, the steps of one strategy, answer

The traces are then cut, corrupted and replaced, to see whether the answer depends on what they say
(`experiments.faithfulness`). All seeds of a cell are one program, cut over the devices.
"""

import dataclasses
import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from matplotlib.figure import Figure

from experiments import faithfulness, launch, sources
from experiments.rl_steps import devices_for, seeds_side_by_side
from reasoning.data import pipelines
from reasoning.data.formats import TextFormat
from reasoning.data.tasks import make_task
from reasoning.data.tasks.base import Task, distinct_problems
from reasoning.evaluation import reports
from reasoning.evaluation.estimators import runs_estimate, wilson_interval
from reasoning.evaluation.policies import Judged, Policy, sample_and_judge
from reasoning.learning.optimizers import OptimizerConfig, make_optimizer
from reasoning.learning.rl_updates import all_seeds, seeds_sharding
from reasoning.learning.updates import TrainState, init_state, sft_update
from reasoning.models.config import ModelConfig, count_parameters
from reasoning.models.transformer import init_params
from reasoning.rewards.host import task_reward
from reasoning.runtime.progress import Progress
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters

PROGRAM = "experiments.serial"
ARMS = ("direct", "filler", "trace")
READ = ("tokens", "labels", "sequences", "steps")  # what a cell was trained on
MEASURED = 500  # examples whose mean length says how many steps a number of tokens makes


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of the study, as one arm answers it.

    Attributes:
      task: whose only strategy is the arm's.
      trained: the same task, whose training problems may be drawn in another way.
      tokens: to train on, prompts included.
      test: held-out problems, the same for every cell.
      chance: accuracy on them of the answer that is most frequent in training.
    """

    name: str
    arm: str
    task: Task
    trained: Task
    text_format: TextFormat
    tokens: int
    test: list[Any]
    chance: float


@dataclasses.dataclass(frozen=True)
class Cell:
    """One policy to train, once per seed.

    Attributes:
      rows, steps: of a batch, and of the training: it reads rows * steps sequences of the
        stream; where a problem has few instances, many are alike.
      longest_prompt, longest_completion: tokens; the fork counts to the completion.
    """

    problem: Problem
    model: ModelConfig
    rows: int
    steps: int
    longest_prompt: int
    longest_completion: int

    @property
    def name(self) -> str:
        """Of its phase."""
        return f"{self.problem.name}/{self.problem.arm}/depth{self.model.num_layers}"

    def policy(self, params: Any) -> Policy:
        """The policy with these parameters."""
        problem = self.problem
        judge, room = task_reward(problem.task), self.longest_completion
        return Policy(params, self.model, problem.text_format, problem.task, judge, room)


def set_up(config: ml_collections.ConfigDict) -> list[Cell]:
    """Every cell of the study, an arm's depths one after another.

    Raises:
      ValueError: what cannot work, in one sentence that names the field and the mend.
    """
    launch.check_study(config, "studied", "serial.py")
    check(config)
    problems = [make_problem(config, name, arm) for name in config.studied for arm in ARMS]
    return [cell for problem in problems for cell in make_cells(config, problem)]


def check(config: ml_collections.ConfigDict) -> None:
    """Refuse settings outside their range (ValueError)."""
    for name in config.studied:
        if name not in config.problems:
            raise ValueError(f"studied={name!r}: must be among {', '.join(config.problems)}.")
    for name in ("studied", "depths"):
        if not config[name] or len(set(config[name])) < len(config[name]):
            raise ValueError(f"{name}={config[name]}: must be one or more, none of them twice.")
    for name in ("directory", "policy"):
        if config.model[name] is not None:
            raise ValueError(f"model.{name}={config.model[name]}: policies start anew here.")
    for name in ("seeds", "training.rows", "training.steps_at_once", "evaluation.problems"):
        section, _, field = name.rpartition(".")
        value = (config[section] if section else config)[field]
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1.")
    for share in config.evaluation.kept:
        if not 0 <= share < 1:
            raise ValueError(f"evaluation.kept={share}: shares must be at least 0 and below 1.")


def make_problem(config: ml_collections.ConfigDict, name: str, arm: str) -> Problem:
    """The problem of that name, with its held-out instances.

    Raises:
      ValueError: a trace that the probes do not know.
    """
    settings = config.problems[name]
    strategy = settings.trace if arm == "trace" else arm
    task = make_task(settings.task, (strategy,), **settings.arguments)
    trained = make_task(settings.task, (strategy,), **{**settings.arguments, **settings.trained})
    if arm == "trace" and (task.name, strategy) not in faithfulness.REST:
        known = (trace for of, trace in faithfulness.REST if of == task.name)
        raise ValueError(
            f"problems.{name}.trace={strategy!r}: of {task.name} the probes know {', '.join(known)}"
            "."
        )
    test = distinct_problems(task, "test", config.seed, config.evaluation.problems)
    read = itertools.islice(trained.stream("train", config.seed), MEASURED)
    answers = Counter(trained.trace(problem, strategy).answer for problem in read)
    likely = answers.most_common(1)[0][0]
    chance = float(np.mean([task.verify(problem, likely).correct for problem in test]))
    text_format = sources.make_format(config, task)
    return Problem(name, arm, task, trained, text_format, settings.tokens, test, chance)


def make_cells(config: ml_collections.ConfigDict, problem: Problem) -> list[Cell]:
    """The cells of one arm of a problem, a depth each.

    Raises:
      ValueError: fewer tokens than one call's steps read.
    """
    sample = examples_of(problem, config.seed, MEASURED)
    rows, at_once = config.training.rows, config.training.steps_at_once
    a_step = rows * np.mean([example.longest for example in sample])
    steps = at_once * round(problem.tokens / (a_step * at_once))
    if steps < 1:
        raise ValueError(
            f"problems.{problem.name}.tokens={problem.tokens}: {at_once} steps of {problem.arm} "
            f"read {at_once * a_step:.0f}; raise it."
        )
    task, (strategy,) = problem.task, problem.task.strategies
    tested = [
        pipelines.make_example(
            problem.text_format, task.prompt(each), (task.trace(each, strategy).completion,)
        )
        for each in problem.test
    ]
    prompt = max(len(example.prompt) for example in sample + tested)
    completion = 1 + max(len(example.traces[0]) for example in sample + tested)
    cells = []
    for depth in config.depths:
        shape = config.copy_and_resolve_references()
        # The probes put a trace before the completion.
        shape.model.update(num_layers=depth, max_length=prompt + 2 * completion)
        model = sources.make_model(shape, problem.text_format)
        cells.append(Cell(problem, model, rows, steps, prompt, completion))
    return cells


def examples_of(problem: Problem, seed: int, count: int) -> list[pipelines.Example]:
    """The first `count` training problems, each with the completion that the arm writes."""
    return pipelines.named_examples(problem.trained, problem.text_format, seed, count)


def first_examples(
    cells: Sequence[Cell], config: ml_collections.ConfigDict
) -> list[list[pipelines.Example]]:
    """What tells whether a resumed run reads the same: the first examples of every arm."""
    problems = {id(cell.problem): cell.problem for cell in cells}.values()
    return [examples_of(problem, config.seed, MEASURED) for problem in problems]


@functools.cache
def compiled_steps(model: ModelConfig, optimizer: Any, num_seeds: int) -> Any:
    """`(states, batches, tags) -> states, metrics`: several steps of all seeds as one program.

    Batches have leading axes `[seeds, steps]`, tags and metrics `[seeds]`.
    """

    def steps(state: TrainState, batches: pipelines.TraceBatch, tags: jax.Array) -> tuple:
        def step(state: TrainState, batch: pipelines.TraceBatch) -> tuple:
            return sft_update(
                state, batch, tags, config=model, optimizer=optimizer, tag_is_label=False
            )

        state, metrics = jax.lax.scan(step, state, batches)
        return state, {name: metrics[name].mean() for name in ("loss", "grad_norm")}

    side_by_side, num_devices = seeds_side_by_side(num_seeds), devices_for(num_seeds)
    return jax.jit(all_seeds(steps, side_by_side, num_devices), donate_argnums=0)


def train(
    run: Run,
    cell: Cell,
    examples: Sequence[pipelines.Example],
    settings: ml_collections.ConfigDict,
    seeds: Sequence[int],
) -> tuple[list[Any], float]:
    """Train a cell's policies, each seed from its own start on the same sequences in its own order.

    Returns:
      the parameters of each seed, and the seconds that all took.
    """
    optimizer = make_optimizer(optimizer_config(settings, cell.steps))
    starts = [init_params(cell.model, launch.run_key(seed, "init")) for seed in seeds]
    states = stack([init_state(params, optimizer) for params in starts])
    if devices_for(len(seeds)) > 1:
        states = jax.device_put(states, seeds_sharding(devices_for(len(seeds))))
    states, start, spent = run.resume(states, {"seconds": 0.0})
    advance = compiled_steps(cell.model, optimizer, len(seeds))
    batches = [batches_of(cell, examples, seed, start) for seed in seeds]
    tags = jnp.zeros((len(seeds), cell.rows), jnp.int32)
    progress = Progress(cell.name, cell.steps // settings.steps_at_once, every=30.0)
    before = time.monotonic() - spent["seconds"]
    for done in range(start, cell.steps, settings.steps_at_once):
        read = stack([stack([next(it) for _ in range(settings.steps_at_once)]) for it in batches])
        states, metrics = advance(states, read, tags)
        metrics = jax.device_get(metrics)
        for i, seed in enumerate(seeds):
            values = {name: metrics[name][i] for name in metrics}
            run.log_metrics(cell.name, done, {"seed": seed, **values})
        progress.advance(nll=float(metrics["loss"].mean()))
        spent["seconds"] = time.monotonic() - before
        if run.due():
            run.save(done + settings.steps_at_once, states, spent)
    progress.close()
    params = jax.device_get(states.params)
    return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(len(seeds))], spent["seconds"]


def optimizer_config(settings: ml_collections.ConfigDict, steps: int) -> OptimizerConfig:
    """The optimizer of `config.training`, its schedule over a cell's steps."""
    names = ("learning_rate", "warmup_steps", "weight_decay", "clip_norm")
    chosen = {name: settings[name] for name in names}
    return OptimizerConfig(settings.optimizer, num_steps=steps, **chosen)


def batches_of(cell: Cell, examples: Sequence[pipelines.Example], seed: int, first: int) -> Any:
    """The batches of a seed from one of them on: every example once, in the seed's order."""
    return pipelines.trace_batches(
        examples, rows=cell.rows, buckets=pipelines.bucket_lengths(examples, 1),
        num_batches=cell.steps, pad_id=cell.problem.text_format.pad_id, seed=seed, first=first,
    )


def stack(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def judge(cell: Cell, params: Any) -> Judged:
    """Greedy completions of the held-out problems, `[P, 1]`."""
    key = jax.random.key(0)  # greedy: it draws nothing
    return sample_and_judge(
        cell.policy(params), cell.problem.test, np.zeros(1, int), key, Filters(temperature=0.0),
        batch_problems=250,
    )


def run_cell(
    run: Run,
    cell: Cell,
    config: ml_collections.ConfigDict,
    make_examples: Callable[[], list[pipelines.Example]],
) -> tuple[None, dict[str, Any]]:
    """Train a cell's policies, judge them, and probe their traces."""
    examples = make_examples()
    seeds = range(config.seed, config.seed + config.seeds)
    policies, seconds = train(run, cell, examples, config.training, seeds)
    judged = [judge(cell, params) for params in policies]
    for seed, found in zip(seeds, judged, strict=True):
        rows = found.rows(cell.problem.task, cell.problem.test)[: config.evaluation.shown]
        run.log_completions({"seed": seed, "cell": cell.name, **row} for row in rows)
    figures = {
        "accuracy": seeds_estimate([found.correct[:, 0] for found in judged]),
        "tokens": sum(example.longest for example in examples),
        "labels": sum(len(example.traces[0]) for example in examples),
        "sequences": len(examples),
        "steps": cell.steps,
        "parameters": count_parameters(cell.model),
        "seconds": seconds,
    }
    if cell.problem.arm == "trace":
        figures["validity"] = float(np.mean([found.validity for found in judged]))
        probed = [
            faithfulness.probe(
                cell.policy(params), cell.problem.test, found.completions[:, 0],
                config.evaluation.kept, cell.longest_prompt, seed,
            )
            for seed, params, found in zip(seeds, policies, judged, strict=True)
        ]
        figures["probes"] = {
            name: {of: seeds_estimate([each[name][of] for each in probed]) for of in outcomes}
            for name, outcomes in probed[0].items()
        }
    return None, figures


def seeds_estimate(outcomes: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """The mean of bool outcomes `[P]`, an entry a seed, with its interval over seeds.

    `seeds` has each one's own, over problems; a single one's is the whole. Seeds without outcomes
    are left out; None: all of them.
    """
    outcomes = [outcome for outcome in outcomes if len(outcome)]
    if not outcomes:
        return None
    each = [wilson_interval(int(outcome.sum()), len(outcome)).as_dict() for outcome in outcomes]
    whole = runs_estimate([one["value"] for one in each]).as_dict() if len(each) > 1 else each[0]
    return {**whole, "seeds": each}


def study(
    run: Run,
    cells: Sequence[Cell],
    first: list[list[pipelines.Example]],
    config: ml_collections.ConfigDict,
) -> dict[str, Any]:
    """Every cell in turn, each a phase of the run; then the plot.

    Args:
      first: examples, for the run's fingerprint; the cells write theirs when they need them.
    """
    del first
    found = []
    for _, group in itertools.groupby(cells, key=lambda cell: id(cell.problem)):
        depths = list(group)
        problem, count = depths[0].problem, depths[0].rows * depths[0].steps
        # Once for all depths, and only where one of them is still to be trained.
        examples = functools.cache(partial(examples_of, problem, config.seed, count))
        for cell in depths:
            work = partial(run_cell, run, cell, config, examples)
            _, figures = run.phase(cell.name, work, steps=cell.steps)
            about = {"problem": problem.name, "arm": problem.arm, "depth": cell.model.num_layers}
            found.append({**about, "chance": problem.chance, **figures})
    plot(found).savefig(run.path / "plots" / "accuracy_by_depth.png", dpi=120)
    return {"cells": found}


def by_problem(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The cells of each problem."""
    names = dict.fromkeys(cell["problem"] for cell in cells)
    return {name: [cell for cell in cells if cell["problem"] == name] for name in names}


def plot(cells: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against depth: a panel for each problem, a line for each arm, dashes at chance."""
    panels = {
        problem: {
            arm: ([c["depth"] for c in of], [c["accuracy"] for c in of])
            for arm in ARMS
            if (of := [cell for cell in group if cell["arm"] == arm])
        }
        for problem, group in by_problem(cells).items()
    }
    figure = reports.estimate_curves(panels, "layers", "accuracy (%)")
    for ax, group in zip(figure.axes, by_problem(cells).values(), strict=True):
        ax.axhline(100 * group[0]["chance"], color="#888888", linestyle="--", linewidth=1)
        ax.set_xticks(sorted({cell["depth"] for cell in group}))
        ax.set_ylim(0, 103)
    return figure


def table(results: Mapping[str, Any]) -> str:
    """Accuracy in percent with the half-width of its interval; what was read; the probes."""
    lines = [f"{'problem':12s} layers  chance{''.join(f'{arm:>15s}' for arm in ARMS)}  valid"]
    read, probes = [], []
    for problem, group in by_problem(results["cells"]).items():
        for depth in dict.fromkeys(cell["depth"] for cell in group):
            arms = {cell["arm"]: cell for cell in group if cell["depth"] == depth}
            figures = "".join(f"{percent(arms[arm]['accuracy']):>15s}" for arm in ARMS)
            chance, valid = 100 * group[0]["chance"], 100 * arms["trace"]["validity"]
            lines.append(f"{problem:12s} {depth:6d}  {chance:6.1f}{figures}  {valid:5.1f}")
            probes += probe_lines(f"{problem:12s} {depth:6d}", arms["trace"]["probes"])
        for cell in arms.values():
            counts = "".join(f"{cell[name]:>12,d}" for name in READ)
            read.append(f"{problem:12s} {cell['arm']:8s}{counts}")
    reading = f"{'problem':12s} {'arm':8s}{''.join(f'{name:>12s}' for name in READ)}"
    probing = f"{'problem':12s} layers  {'probe':12s}  traces       accuracy       followed"
    return "\n".join((*lines, "", reading, *read, "", probing, *probes))


def percent(estimate: Mapping[str, Any]) -> str:
    """`62.4 ±2.1`: the half-width is that of the wider side."""
    value, low, high = (100 * estimate[end] for end in ("value", "low", "high"))
    return f"{value:.1f} ±{max(high - value, value - low):.1f}"


def probe_lines(cell: str, probes: Mapping[str, Any]) -> list[str]:
    """One line per probe; of a cell without a trace to probe there is none."""
    lines = []
    for name, figures in probes.items():
        if figures["correct"] is not None:
            traces = sum(seed["n"] for seed in figures["correct"]["seeds"])
            shown = "".join(f"{percent(estimate):>15s}" for estimate in figures.values())
            lines.append(f"{cell}  {name:12s}{traces:>8,d}{shown}")
    return lines


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Run the study, or report the finished one."""
    launch.run_study(
        PROGRAM, config, workdir, build=set_up, make_data=first_examples, work=study, table=table
    )


if __name__ == "__main__":
    launch.start(main)
