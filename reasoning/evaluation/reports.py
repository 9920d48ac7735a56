"""What a run leaves to look at: seeds put together, a table, and plots.

    results = over_seeds([results_of_seed_0, results_of_seed_1])
    print(table(results))
    plot_run(path, task.strategies, results)

Results are those of one seed, {"arms": {arm: figures}, "comparisons": ...}, or of `over_seeds`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from reasoning.evaluation.estimators import runs_estimate
from reasoning.run_files import METRICS

# name in results.json -> heading
COLUMNS = {
    "pass@1": "pass@1",
    "pass@1_best_tag": "best tag",
    "pass@1_own_tag": "own tag",
    "pass@S": "pass@S",
    "cons@S": "cons@S",
    "greedy_coverage": "greedy cover",
    "mutual_information": "MI/max %",
}
# metric -> label of its panel
LEARNING = {
    "trace_nll": "trace NLL (nats per token)",
    "grad_norm": "gradient norm",
    "matching_entropy": "matching entropy (nats)",
}
REINFORCEMENT = {
    "reward": "reward",
    "validation/pass@1": "pass@1 on validation problems",
    "completions/mean_length": "length (tokens)",
    "entropy": "entropy (nats per trained token)",
    "penalised": "over-long, repetitive or garbled",
    "tags/entropy": "entropy of the tags (nats)",
}
COLOURS = {
    "mixed": "#888888",
    "random": "#d99a4e",
    "fixed": "#7aa6c2",
    "matched": "#b0304f",
    "mixed_grpo": "#4d7d4d",
    "matched_gfpo": "#5b3a8c",
    "mixed_t1": "#e58fb0",
}
SPENT = ("steps", "tokens", "seconds", "evaluation_seconds")  # what training an arm took


def completions_table(rows: Sequence[Mapping[str, Any]], width: int) -> str:
    """Completions with reward and reason, one a line, cut in the middle to `width` characters.

    Args:
      rows: as `reasoning.evaluation.policies.Judged.rows` makes them.
    """
    heading = f"{'reward':>6}  {'reason':<14}  {'tag':>3}  completion"
    lines = [heading]
    for row in rows:
        text = f"{row['prompt']} {row['completion']}".replace("\n", "\\n")
        opening = f"{row['reward']:6.2f}  {row['reason']:<14}  {row['tag']:>3}  "
        room = max(width - len(opening), 20)
        if len(text) > room:  # a completion says most at both of its ends
            text = f"{text[: room // 2 - 2]} .. {text[len(text) - (room - room // 2 - 2) :]}"
        lines.append(opening + text)
    return "\n".join(lines)


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the results of several seeds together: means and intervals over seeds.

    Every entry of an arm that has a value becomes `runs_estimate` of the seeds' values, so its `n`
    is the number of seeds; so does every point of the pass@k curve, and every comparison. Of
    `training` the means are kept. Tags are exchangeable between seeds (tag 0 of one may follow
    the strategy of tag 2 of another), so that means by tag would blur what they do: `per_tag`,
    `tag_by_strategy` and the shares of `tag_usage` are left to the results of the single seeds.

    The launchers draw the test problems once, by the configuration's seed: all seeds of a run are
    judged on the same ones. The interval is then over training seeds, for these problems, and says
    nothing of other problems. It covers both only if each seed's results are on problems of its
    own.

    Args:
      results: of two or more seeds; the arms and figures are those of the first.

    Returns:
      `arms`, `comparisons` if the first seed has them, and `seeds`, all that was given.

    Raises:
      ValueError: fewer than two seeds, a seed that lacks what the first has, or pass@k curves of
        different k.
    """
    if len(results) < 2:
        raise ValueError(f"results: {len(results)} seed has no interval; give at least two.")
    arms = _of_each(results, "arms")
    merged = {"arms": {arm: _arm_over_seeds(_of_each(arms, arm)) for arm in arms[0]}}
    if "comparisons" in results[0]:
        merged["comparisons"] = _values_over_seeds(_of_each(results, "comparisons"))
    return {**merged, "seeds": list(results)}


def figures_over_seeds(figures: Sequence[Any]) -> Any:
    """The same figures of two or more seeds as one, whatever holds them.

    Entries with a `value` become its mean over the seeds with an interval; other numbers their
    mean; what is inside of dicts and lists likewise; anything else the list of all.
    """
    first = figures[0]
    if isinstance(first, Mapping):
        estimate = {}
        if "value" in first:
            estimate = runs_estimate([each["value"] for each in figures]).as_dict()
        names = [name for name in first if name not in estimate]
        return {**estimate, **{name: figures_over_seeds([f[name] for f in figures])
                               for name in names}}
    if isinstance(first, list):
        return [figures_over_seeds(each) for each in zip(*figures, strict=True)]
    is_number = isinstance(first, int | float) and not isinstance(first, bool)
    return float(np.mean(figures)) if is_number else list(figures)


def _of_each(parts: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The entry of that name of every seed."""
    for seed, part in enumerate(parts):
        if name not in part:
            raise ValueError(
                f"results[{seed}]: has no {name!r}, so there is no mean over seeds; give results "
                "of one configuration."
            )
    return [part[name] for part in parts]


def _arm_over_seeds(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One arm's figures, an entry per seed, as one."""
    curves = _of_each(figures, "pass@k")
    if any(curve["k"] != curves[0]["k"] for curve in curves):
        raise ValueError(
            f"results: pass@k at k = {[curve['k'] for curve in curves]}; give results of one "
            "configuration."
        )
    points = zip(*(curve["curve"] for curve in curves), strict=True)
    merged = {
        **_values_over_seeds(figures),
        "pass@k": {"k": curves[0]["k"], "curve": [_value_over_seeds(point) for point in points]},
    }
    if "training" in figures[0]:
        spent = _of_each(figures, "training")
        merged["training"] = {
            name: float(np.mean(_of_each(spent, name))) for name in SPENT if name in spent[0]
        }
    return merged


def _values_over_seeds(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every entry of the first seed that has a value, over all seeds."""
    return {
        name: _value_over_seeds(_of_each(parts, name))
        for name, entry in parts[0].items()
        if isinstance(entry, Mapping) and "value" in entry
    }


def _value_over_seeds(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One entry over seeds, with its maximum and the share of it where it has one."""
    merged = runs_estimate([entry["value"] for entry in entries]).as_dict()
    if "maximum" in entries[0]:
        merged["maximum"] = entries[0]["maximum"]
        merged["share"] = float(np.mean([entry["share"] for entry in entries]))
    return merged


def table(results: Mapping[str, Any], columns: Mapping[str, str] = COLUMNS) -> str:
    """One line per arm and per comparison: percent, with the half-width of the 95% interval.

    Mutual information is in percent of its maximum; a corpus, which names no strategies, has none.

    Args:
      columns: name in the results -> heading; those that an arm lacks are left out.
    """
    arms = results["arms"]
    names = [name for name in columns if all(name in figures for figures in arms.values())]
    width = max([14, *map(len, arms)])
    lines = [f"{'arm':{width}s}" + "".join(f"{columns[name]:>15s}" for name in names)]
    for arm, figures in arms.items():
        lines.append(f"{arm:{width}s}" + "".join(f"{_cell(figures[name]):>15s}" for name in names))
    for name, entry in results.get("comparisons", {}).items():
        lines.append(
            f"{name}: {100 * entry['value']:+.1f} points, 95% interval "
            f"{100 * entry['low']:+.1f} to {100 * entry['high']:+.1f}, n = {entry['n']}"
        )
    return "\n".join(lines)


def _cell(entry: Mapping[str, Any]) -> str:
    """`62.4 ±2.1`: percent of the entry's maximum, which is 1 if it names none."""
    maximum = entry.get("maximum", 1.0)
    percent = 100 / maximum if maximum else 0.0
    half = (entry["high"] - entry["low"]) / 2
    return f"{percent * entry['value']:.1f} ±{percent * half:.1f}"


def plot_run(path: Path, strategies: Sequence[str], results: Mapping[str, Any]) -> None:
    """Write every plot of a run into its plots/ folder, which exists.

    Args:
      path: the run directory, with its metrics.jsonl.
      strategies: the names of the task's strategies.
      results: of one seed, or of `over_seeds`.
    """
    metrics = [json.loads(line) for line in (path / METRICS).read_text().splitlines()]
    for name, figure in run_figures(metrics, strategies, results).items():
        figure.savefig(path / "plots" / f"{name}.png", dpi=120)


def run_figures(
    metrics: Sequence[Mapping[str, Any]], strategies: Sequence[str], results: Mapping[str, Any]
) -> dict[str, Figure]:
    """Every plot of a run by name; see `plot_run`.

    Of several seeds, learning curves and pass@k show all. What is by tag shows the first seed, as
    its title says: means over seeds would blur it.
    """
    seeds = results.get("seeds", [results])
    first = seeds[0]["arms"]
    title = f"first of {len(seeds)} seeds" if len(seeds) > 1 else ""
    figures = {
        "learning_curves": learning_curves(metrics),
        "accuracy_by_tag": accuracy_by_tag(first, title),
        "pass_at_k": pass_at_k_curves(results["arms"]),
    }
    if strategies:
        figures["tag_by_strategy"] = tag_by_strategy(first, strategies, title)
    if any("reward" in row for row in metrics):
        figures["reinforcement"] = reinforcement_curves(metrics)
    return figures


def _figure(
    panels: int, width: float = 4.2, height: float = 3.4, title: str = "", columns: int = 4
) -> tuple[Figure, list[Any]]:
    """A figure with rows of at most so many panels; it belongs to no window, nothing is global."""
    columns = min(panels, columns)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[panels:]:
        unused.remove()
    for ax in axes[:panels]:
        ax.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure, list(axes[:panels])


def _legend(figure: Figure, axes: Sequence[Any]) -> None:
    """The lines of all panels in one legend above them, where it covers none."""
    lines = {line.get_label(): line for ax in axes for line in ax.get_lines()}
    columns = max(int(figure.get_figwidth() / 1.5), 1)
    figure.legend(
        lines.values(), lines.keys(), loc="outside upper center", ncols=columns, frameon=False,
        fontsize=8,
    )


def _colours(names: Iterable[str]) -> dict[str, Any]:
    """A colour for each arm or phase: its own, or its place between dark and light."""
    names = list(dict.fromkeys(names))
    others = [name for name in names if name not in COLOURS]
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(others)))
    of_others = dict(zip(others, shades))
    return {name: COLOURS.get(name, of_others.get(name)) for name in names}


def learning_curves(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and gradient norm by step, one line per phase; matching entropy where there is one.

    Of several seeds: their mean, in a band from the smallest to the largest.

    Args:
      metrics: the lines of metrics.jsonl; shown are the steps that every seed of a phase has.
    """
    figure = _curves(metrics, LEARNING)
    figure.axes[0].set_yscale("log")
    return figure


def reinforcement_curves(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """What reinforcement learning changes by step, one line per phase; seeds as above.

    Reward on the rollouts, pass@1 of the policy's own tags on validation problems, length of the
    completions, the policy's entropy, share of the patterns that T1 penalises, entropy of the tags.
    """
    phases = {row["phase"] for row in metrics if "reward" in row}
    return _curves([row for row in metrics if row["phase"] in phases], REINFORCEMENT)


def _curves(metrics: Sequence[Mapping[str, Any]], shown: Mapping[str, str]) -> Figure:
    """One panel for each metric of `shown` (name -> label), one line per phase that has it.

    What no phase has is left out.
    """
    found = {name for row in metrics for name in row}
    shown = {name: label for name, label in shown.items() if name in found}
    figure, axes = _figure(len(shown), columns=3)
    for phase, colour in _colours(row["phase"] for row in metrics).items():
        for ax, name in zip(axes, shown, strict=True):
            rows = [row for row in metrics if row["phase"] == phase and name in row]
            if rows:
                steps, values = _smooth(*_by_seed(rows, name))
                ax.plot(steps, values.mean(axis=0), label=phase, color=colour, linewidth=1.2)
                if len(values) > 1:
                    ax.fill_between(
                        steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2,
                        linewidth=0,
                    )
    for ax, label in zip(axes, shown.values(), strict=True):
        ax.set(xlabel="step", ylabel=label)
    _legend(figure, axes)
    return figure


def _by_seed(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps done `[T]` that all seeds have, and the metric of that name `[seeds, T]`.

    A training metric belongs to the end of its step, a validation metric to the start.
    """
    seeds = dict.fromkeys(row["seed"] for row in rows)
    each = [{row["step"]: row[name] for row in rows if row["seed"] == seed} for seed in seeds]
    steps = [step for step in each[0] if all(step in of_seed for of_seed in each)]
    done = 0 if name.startswith("validation/") else 1
    values = np.array([[of_seed[step] for step in steps] for of_seed in each])
    return np.array(steps) + done, values


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values `[seeds, T]` as means over a fiftieth of the steps `[T]`, each at its last step."""
    window = max(1, len(steps) // 50)
    kernel = np.ones(window) / window
    smooth = np.stack([np.convolve(row, kernel, mode="valid") for row in values])
    return steps[window - 1 :], smooth


def accuracy_by_tag(arms: Mapping[str, Any], title: str = "") -> Figure:
    """pass@1 under each tag, one group of bars per arm, all bars of one width."""
    figure, (ax,) = _figure(1, width=6, title=title)
    colours = _colours(arms)
    width = 0.8 / max(len(figures["per_tag"]) for figures in arms.values())
    for i, (arm, figures) in enumerate(arms.items()):
        bars = [tag["pass@1"] for tag in figures["per_tag"]]
        values = np.array([bar["value"] for bar in bars])
        errors = np.array([[b["value"] - b["low"], b["high"] - b["value"]] for b in bars]).T
        places = i + (np.arange(len(bars)) - (len(bars) - 1) / 2) * width
        ax.bar(places, 100 * values, 0.9 * width, yerr=100 * np.abs(errors), color=colours[arm],
               ecolor="#444444", capsize=2)
    ax.set_xticks(range(len(arms)), [arm.replace("_", "\n") for arm in arms])
    ax.set(ylabel="pass@1 by tag (%)")
    return figure


def tag_by_strategy(arms: Mapping[str, Any], strategies: Sequence[str], title: str = "") -> Figure:
    """Heat maps: of the traces under each tag, the share that follows each strategy."""
    figure, axes = _figure(len(arms), width=3.2, title=title)
    columns = [*strategies, "none"]
    for ax, (arm, figures) in zip(axes, arms.items(), strict=True):
        counts = np.array(figures["tag_by_strategy"])
        tags = np.flatnonzero(counts.sum(axis=1))  # those that were trained, and so sampled
        shares = counts[tags] / counts[tags].sum(axis=1, keepdims=True)
        ax.imshow(shares, cmap="Reds", vmin=0, vmax=1, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8,
                    color="white" if share > 0.6 else "black")
        ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
        ax.set_yticks(range(len(tags)), [f"tag {tag}" for tag in tags])
        share = figures["mutual_information"]["share"]
        ax.set_title(f"{arm}: {100 * share:.0f}% of max. MI", fontsize=10)
    return figure


def pass_at_k_curves(arms: Mapping[str, Any]) -> Figure:
    """pass@k by k, samples spread evenly over the arm's tags, with its interval as a band."""
    curves = {
        arm: (figures["pass@k"]["k"], figures["pass@k"]["curve"]) for arm, figures in arms.items()
    }
    return estimate_curves({"": curves}, "samples k", "pass@k (%)", log_x=True)


# x and an estimate's entry of results.json (value, low, high) at each.
Curve = tuple[Sequence[float], Sequence[Mapping[str, Any]]]


def estimate_curves(
    panels: Mapping[str, Mapping[str, Curve]], xlabel: str, ylabel: str, log_x: bool = False
) -> Figure:
    """Shares in percent against x with their intervals as bands: one panel a title, one line a
    name, in one colour throughout.
    """
    figure, axes = _figure(len(panels), width=5 if len(panels) == 1 else 4.2, columns=3)
    colours = _colours(name for curves in panels.values() for name in curves)
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, (xs, points) in curves.items():
            value, low, high = (
                100 * np.array([point[end] for point in points]) for end in ("value", "low", "high")
            )
            ax.plot(xs, value, marker="o", markersize=3, label=name, color=colours[name])
            ax.fill_between(xs, low, high, color=colours[name], alpha=0.15, linewidth=0)
        if log_x:
            ticks = sorted({x for xs, _ in curves.values() for x in xs})
            ax.set_xscale("log", base=2)
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.set_title(title, fontsize=10)
    _legend(figure, axes)
    return figure


def estimate_bars(series: Mapping[str, Mapping[str, Mapping[str, Any]]], xlabel: str) -> Figure:
    """Shares in percent with their intervals: one row a name, one colour a series."""
    names = list(dict.fromkeys(name for entries in series.values() for name in entries))
    figure, (ax,) = _figure(1, width=7, height=0.8 + 0.32 * len(names))
    height = 0.8 / len(series)
    for i, (label, colour) in enumerate(_colours(series).items()):
        entries = [(row, series[label][name]) for row, name in enumerate(names)
                   if name in series[label]]
        places = [row + (i - (len(series) - 1) / 2) * height for row, _ in entries]
        value, low, high = (
            100 * np.array([entry[end] for _, entry in entries]) for end in ("value", "low", "high")
        )
        ax.barh(places, value, 0.9 * height, xerr=[value - low, high - value], label=label,
                color=colour, ecolor="#444444", capsize=2)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()  # the first name on top
    ax.set(xlabel=xlabel)
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series))
    return figure
