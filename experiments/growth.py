"""How the time of a step grows: with the batch, the length, the samples and the strategies.

Each row holds the medians of programs that differ in one number, timed in turn, and the slope of
log time over log number: 1 where twice as much takes twice as long.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.step_benchmarks import (
    WORK,
    model_config,
    sampler_program,
    set_loss_program,
    sft_program,
)
from experiments.timing import Program, Row, run_in_turn

SCALES = (0.25, 0.5, 1.0, 2.0)  # of the numbers of a size
STRATEGIES = (4, 6, 8, 12)


def measure_growth(size: str, repeats: int) -> Iterator[Row]:
    """Sampling, fine-tuning and the set loss, one number after another."""
    work = WORK[size]
    rows, prompt, new = work.rows, work.prompt, work.new_tokens
    length, train_rows, trace = work.train_length, work.train_rows, work.trace

    def sampled(num_prompts: int, new_tokens: int, num_samples: int = 1) -> Program:
        config = model_config(size, prompt + new_tokens)
        nobody_stops = (config.output_size,)
        return sampler_program(config, num_prompts, prompt, new_tokens, nobody_stops, num_samples)

    def trained(num_rows: int, row_length: int) -> Program:
        return sft_program(model_config(size, row_length), num_rows)

    def matched(num_strategies: int) -> Program:
        config = model_config(size, 2 * trace + 1, num_strategies=num_strategies)
        return set_loss_program(config, work.problems, trace, share=1.0)

    studies: tuple[tuple[str, str, Sequence[int], Callable[[int], Program]], ...] = (
        ("sampler", "rows", scaled(rows), lambda n: sampled(n, new)),
        ("sampler", "new_tokens", scaled(new), lambda n: sampled(rows, n)),
        ("sampler", "num_samples", (1, 2, 4, 8), lambda n: sampled(max(rows // 4, 1), new, n)),
        ("sft", "rows", scaled(train_rows), lambda n: trained(n, length)),
        ("sft", "length", scaled(length), lambda n: trained(train_rows, n)),
        ("set_loss", "num_strategies", STRATEGIES, matched),
    )
    for what, by, numbers, program in studies:
        laps = run_in_turn([program(number) for number in numbers], repeats)
        medians = [float(np.median(of_program[1:])) for of_program in laps]
        yield {
            "what": "growth",
            "size": size,
            "of": what,
            "by": by,
            "at": list(numbers),
            "medians_s": [round(median, 5) for median in medians],
            "exponent": round(growth_exponent(numbers, medians), 3),
        }


def scaled(number: int) -> list[int]:
    """The different numbers at which one of a size is varied."""
    return sorted({max(round(scale * number), 1) for scale in SCALES})


def growth_exponent(numbers: Sequence[float], times: Sequence[float]) -> float:
    """The least-squares slope of log time over log number."""
    return float(np.polyfit(np.log(numbers), np.log(times), 1)[0])


def plot_growth(rows: Sequence[Row], path: Path) -> None:
    """Time over number, a panel for each of what is measured, the exponents in the legends."""
    kinds = sorted({row["of"] for row in rows})
    figure = Figure(figsize=(4 * len(kinds), 3.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for row in (row for row in rows if row["of"] == kind):
            relative = np.array(row["at"]) / row["at"][0]
            label = f"{row['by']}: {row['exponent']:.2f}"
            axes.loglog(relative, row["medians_s"], "o-", base=2, label=label)
        axes.set(title=kind, xlabel="times the least", ylabel="seconds")
        axes.legend(title="exponent", frameon=False)
    figure.savefig(path, dpi=150)
