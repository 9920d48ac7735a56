"""How fast this project is: one JSON line for every measurement, on the machine at hand.

    python -m experiments.benchmark --only=sampler,sft,rl
    python -m experiments.benchmark --only=rl,program --size=tiny --repeats=2
    python -m experiments.benchmark --only=growth --plot=growth.png

sampler, sft, rl: on the work that peers are timed on; sft by one part of the batch at a time, of
    several. `share_of_peak`, of the first two, is that of the machine's matrix products in the
    model's own type. With --jax_num_cpu_devices=2 each core of two samples half of the rows.
decode: one sequence, with the share of the machine's memory bandwidth (`--size=350m`). As the
    sampler it ends with `products_alone`: the products with the weights and nothing else.
set_loss: matched tags beside plain fine-tuning on the same traces.
growth: how a step's time grows with its rows, lengths, samples and strategies; --plot draws it.
program: many steps of GRPO on group words as one program, for one seed and for 8 at once; the 8 are
    cut over the devices, so that with --jax_num_cpu_devices=2 each core of two has four of them.

checkpoint: what saving costs the loop of supervised fine-tuning, and restoring.

data: countdown's problems written with their traces; their batches, padded and packed.
judge: answers per second on one core, by exact comparison (texts like those of GSM8K) and by
    algebra, which needs `pip install '.[math]'`.

`first_s` is the first call, with compilation; what is compared runs in turn, and `median_s` is the
median of the later `laps`. `load1` is the machine's load before the first of all laps: near 0, if
it was idle, as it should be.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import app, flags, logging

from experiments import launch, usage
from experiments.batches import plan_batches
from experiments.configs import countdown, group_words
from experiments.growth import measure_growth, plot_growth
from experiments.rl import rl_config, rl_optimizer, rl_problems, start_seeds
from experiments.rl_steps import devices_for, one_program
from experiments.sft import Setup, set_up
from experiments.step_benchmarks import (
    WORK,
    measure_decode,
    measure_rl,
    measure_sampler,
    measure_set_loss,
    measure_sft,
    model_config,
    trace_batch,
)
from experiments.timing import Program, Row, report, run_in_turn
from reasoning.data.pipelines import strategy_examples
from reasoning.learning.rl_state import PolicyState
from reasoning.learning.rl_updates import make_rl_step
from reasoning.learning.rollouts import Metrics
from reasoning.learning.updates import init_state, sft_update
from reasoning.models.config import count_parameters
from reasoning.models.transformer import init_params
from reasoning.rewards.answers import compare, extract
from reasoning.rewards.device import device_reward
from reasoning.rewards.symbolic import SymbolicPool
from reasoning.runtime.checkpoints import Checkpoints

NUM_SEEDS = 8


def program_setup(size: str) -> tuple[Setup, ml_collections.ConfigDict]:
    """Group words, and the settings of a GRPO run on it, with the smoke run's small batches."""
    config = group_words.get_config()
    config.evaluation.problems = config.evaluation.validation_problems = 8
    settings = config.grpo
    settings.steps, settings.prompts, settings.samples, settings.problems = 50, 4, 4, 200
    settings.microbatches = 1
    # An untrained policy is never right; to repeat no token is what it can learn.
    settings.shaping.repetition_weight, settings.shaping.repetition_ngram = 1.0, 1
    if size == "tiny":
        settings.steps, settings.prompts, settings.samples, settings.problems = 3, 2, 2, 6
        config.model.update(d_model=8, num_layers=1, head_dim=4, d_ff=8, max_length=24)
    return set_up(config, (config.arm,)), settings


def seeds_program(
    setup: Setup, settings: ml_collections.ConfigDict, num_seeds: int, vmapped: bool
) -> Program:
    """All steps of seeds 0, 1, ... as `experiments.rl` runs them, from untrained policies."""
    config = rl_config(setup, settings, early_exit=not vmapped)
    problems = rl_problems(setup, settings, seed=0)
    seeds = range(num_seeds)
    policies = [init_params(setup.model, launch.run_key(seed, "init")) for seed in seeds]
    chosen = [np.arange(len(problems.problems))] * num_seeds
    state, plan, keys = start_seeds(policies, chosen, settings, config, seeds)
    reward = device_reward(setup.task, setup.text_format.tokenizer)
    return Program(
        one_program(config, rl_optimizer(settings), reward, vmapped, devices_for(num_seeds)),
        state,
        jax.tree.map(lambda x: x[plan], problems.prompts),
        keys,
    )


def step_by_step(
    setup: Setup, settings: ml_collections.ConfigDict, program: Program
) -> tuple[PolicyState, Metrics]:
    """What a program of one seed computes, by one call for each step."""
    reward = device_reward(setup.task, setup.text_format.tokenizer)
    step = jax.jit(make_rl_step(rl_config(setup, settings), rl_optimizer(settings), reward))
    state, prompts, keys = jax.tree.map(lambda x: x[0], (program.state, *program.inputs))
    made = []
    for i in range(settings.steps):
        state, metrics = step(state, jax.tree.map(lambda x, i=i: x[i], prompts), keys[i])
        made.append(metrics)
    metrics = jax.tree.map(lambda *x: jnp.stack(x), *made)
    return jax.tree.map(lambda x: x[None], (state, metrics))


def bitwise_equal(a: Any, b: Any) -> bool:
    """Whether two trees of arrays hold the same numbers to the last bit."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


def measure_program(size: str, repeats: int) -> Iterator[Row]:
    """Many steps as one program: one seed, 8 vmapped, and 8 one after another.

    Raises:
      RuntimeError: the policies had nothing to learn from, so that equality would say nothing.
    """
    setup, settings = program_setup(size)
    programs = {
        (seeds, vmapped): seeds_program(setup, settings, seeds, vmapped)
        for seeds, vmapped in ((1, False), (NUM_SEEDS, True), (NUM_SEEDS, False))
    }
    laps = dict(zip(programs, run_in_turn(list(programs.values()), repeats)))
    alone = programs[1, False]
    one = statistics.median(laps[1, False][1:])
    in_steps = step_by_step(setup, settings, alone)
    for (seeds, vmapped), program in programs.items():
        _, metrics = program.result
        if not (metrics["reward_std"] > 0).any(axis=1).all():
            raise RuntimeError("program: a seed's rewards were all alike; it could not learn.")
        finding = {"bitwise_equal": bitwise_equal(alone.result, in_steps)}
        if seeds > 1:
            times = statistics.median(laps[seeds, vmapped][1:]) / one
            finding = {"vmapped": vmapped, "times_one_seed": round(times, 2)}
        yield report(
            "program", size, float(metrics["num_tokens"].sum()), laps[seeds, vmapped],
            seeds=seeds, devices=devices_for(seeds), steps=settings.steps,
            host_callbacks=program.host_callbacks(), **finding,
        )


def save_beside(
    checkpoints: Checkpoints, step: int, state: Any, work: Callable[[], float]
) -> tuple[float, float, float]:
    """Save while work goes on: seconds that it blocks, until all is written, and of the work."""

    def written() -> float:
        checkpoints.wait()
        return time.perf_counter()

    with ThreadPoolExecutor(max_workers=1) as waiting:
        started = time.perf_counter()
        checkpoints.save(step, state, {})
        blocked = time.perf_counter() - started
        ended = waiting.submit(written)  # the work may take longer than the disk
        worked = work()
        return blocked, ended.result() - started, worked


def measure_checkpoint(size: str, repeats: int) -> Iterator[Row]:
    """Steps of AdamW, every other one while the one before is saved; then a restore."""
    # Of 350 million parameters, or a tiny one.
    model = model_config("350m" if size == "peer" else size, 256 if size == "peer" else 12)
    optimizer = optax.adamw(1e-4)
    rows, length = 4, model.max_length
    batch = trace_batch(model, problems=rows, traces=1, prompt=4)
    state = init_state(init_params(model, jax.random.key(0)), optimizer)
    num_bytes = sum(x.nbytes for x in jax.tree.leaves(state))

    def step() -> float:
        nonlocal state
        started = time.perf_counter()
        state, _ = sft_update(state, batch, batch.slot, config=model, optimizer=optimizer)
        jax.block_until_ready(state)
        return time.perf_counter() - started

    laps, saves = [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep_last=1) as checkpoints:
        for lap in range(1 + repeats):
            laps.append(step())
            saves.append(save_beside(checkpoints, lap, state, step))
        started = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(repeats, state))
        restored = time.perf_counter() - started
    blocked, written, beside = map(statistics.median, zip(*saves[1:], strict=True))
    yield report(
        "checkpoint", size, rows * length, laps,
        parameters=count_parameters(model), bytes=num_bytes,
        blocked_s=round(blocked, 4),
        blocked_share=round(blocked / statistics.median(laps[1:]), 4),
        step_while_writing_s=round(beside, 4),
        written_s=round(written, 2), restored_s=round(restored, 2),
    )


def measure_data(size: str, repeats: int) -> Iterator[Row]:
    """Problems written with all their traces, as ids; then batches, padded to buckets or packed."""
    config = countdown.get_config()
    config.evaluation.problems = config.evaluation.validation_problems = 8
    config.finetune.steps = 20 if size == "tiny" else 200
    setup, settings = set_up(config, ("matched",)), config.finetune
    count, pad_id = 30 if size == "tiny" else 1000, setup.text_format.pad_id
    kinds = {"padded": 0, "packed": config.model.max_length}
    laps: dict[str, list[float]] = {kind: [] for kind in ("written", *kinds)}
    tokens: dict[str, int] = {}
    for _ in range(1 + repeats):
        started = time.perf_counter()
        examples = strategy_examples(setup.task, setup.text_format, 0, count)
        laps["written"].append(time.perf_counter() - started)
        tokens["written"] = sum(len(e.prompt) + sum(map(len, e.traces)) for e in examples)
        for kind, pack in kinds.items():
            settings.pack = pack
            started = time.perf_counter()
            batches = plan_batches(examples, settings, 0, pad_id, None).batches(0)
            tokens[kind] = sum(int(batch.lengths.sum()) for batch in batches)
            laps[kind].append(time.perf_counter() - started)
    for kind, of_kind in laps.items():
        yield report("data", size, tokens[kind], of_kind, kind=kind)


def judged_texts(count: int) -> list[tuple[str, str]]:
    """Gold answers and completions like those of GSM8K, of 450 letters; a third are wrong."""
    rng = np.random.default_rng(0)
    steps = "Natalia sold 48/2 = <<48/2=24>>24 clips in May, so 48+24 = <<48+24=72>>72 in all.\n"
    spellings = ("{}", "{:,}", "${}", "{:.2f}", "{} dollars", r"{}\text{{ clips}}")
    endings = ("#### {}", r"So the answer is $\boxed{{{}}}$.")
    rows = []
    for number in rng.integers(1, 100_000, count).tolist():
        answer = number + int(rng.integers(3) == 0)
        spelled = spellings[rng.integers(len(spellings))].format(answer)
        rows.append((str(number), 5 * steps + endings[rng.integers(2)].format(spelled)))
    return rows


def measure_judge(size: str, repeats: int) -> Iterator[Row]:
    """Extraction and exact comparison in this process; algebra in one worker."""
    texts = judged_texts(20_000 if size == "peer" else 100)

    def exact() -> None:
        for gold, text in texts:
            compare(gold, extract(text).answer, "number")

    yield judge_row("exact", size, len(texts), exact, repeats)
    pairs = [(f"{i}x+{i + 1}", f"{i + 1}+{i}x") for i in range(2, 402 if size == "peer" else 12)]
    with SymbolicPool(num_workers=1) as pool:
        yield judge_row("symbolic", size, len(pairs), lambda: pool.verify(pairs), repeats)


def judge_row(
    method: str, size: str, count: int, judge: Callable[[], Any], repeats: int
) -> Row:
    """Laps of a function that judges `count` answers."""
    laps = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        judge()
        laps.append(time.perf_counter() - started)
    median = statistics.median(laps[1:])
    return {
        "what": "judge",
        "method": method,
        "size": size,
        "answers_per_s": round(count / median),
        "median_s": round(median, 4),
        "laps": [round(lap, 4) for lap in laps[1:]],
        "first_s": round(laps[0], 4),
    }


MEASUREMENTS: dict[str, Callable[[str, int], Iterator[Row]]] = {
    "sampler": measure_sampler,
    "decode": measure_decode,
    "sft": measure_sft,
    "set_loss": measure_set_loss,
    "rl": measure_rl,
    "program": measure_program,
    "checkpoint": measure_checkpoint,
    "data": measure_data,
    "judge": measure_judge,
    "growth": measure_growth,
}

_ONLY = flags.DEFINE_list(
    "only", [name for name in MEASUREMENTS if name != "growth"],
    f"Some of {', '.join(MEASUREMENTS)}; growth takes longest.",
)
_SIZE = flags.DEFINE_enum("size", "peer", list(WORK), "peer: what peers are timed on.")
_PLOT = flags.DEFINE_string("plot", None, "A file for the picture of growth.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Laps after the first call.", lower_bound=1)


def measure(names: Sequence[str], size: str, repeats: int) -> Iterator[Row]:
    """The rows of these measurements, each with the load of the machine before the first."""
    load1 = round(os.getloadavg()[0], 2)  # later it is the measurements' own
    for name in names:
        for row in MEASUREMENTS[name](size, repeats):
            yield {**row, "load1": load1}


def main(argv: Sequence[str]) -> None:
    """Measure what the flags name."""
    if argv[1:]:
        launch.refuse(f"{argv[1]!r}: no such argument; name measurements as --only=rl,program.")
    for name in _ONLY.value:
        if name not in MEASUREMENTS:
            launch.refuse(f"only={name!r}: must be some of {', '.join(MEASUREMENTS)}.")
    logging.set_verbosity(logging.WARNING)  # no word on schedules without warm-up
    launch.keep_memory()
    if _PLOT.value and "growth" not in _ONLY.value:
        launch.refuse(f"plot={_PLOT.value!r}: shows growth; add it to --only.")
    if _PLOT.value and not Path(_PLOT.value).parent.is_dir():
        launch.refuse(f"plot={_PLOT.value!r}: there is no such folder; make it.")
    rows = []
    for row in measure(_ONLY.value, _SIZE.value, _REPEATS.value):
        print(json.dumps(row), flush=True)
        rows.append(row)
    if _PLOT.value:
        plot_growth([row for row in rows if row["what"] == "growth"], Path(_PLOT.value))


if __name__ == "__main__":
    jax.config.config_with_absl()
    app.run(main, flags_parser=usage.parse)
