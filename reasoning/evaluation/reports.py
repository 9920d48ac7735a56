"""Tables and plots of a run's results.json and metrics.jsonl."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

# name in results.json -> (heading, factor it is printed with)
COLUMNS = {
    "pass@1": ("pass@1", 100),
    "pass@1_best_tag": ("best tag", 100),
    "pass@1_own_tag": ("own tag", 100),
    "pass@S": ("pass@S", 100),
    "cons@S": ("cons@S", 100),
    "greedy_coverage": ("greedy cover", 100),
    "mutual_information": ("MI (nats)", 1),
}
COLOURS = {"mixed": "#888888", "random": "#d99a4e", "fixed": "#7aa6c2", "matched": "#b0304f"}


def table(results: Mapping[str, Any]) -> str:
    """One line per arm: percent (MI in nats) with the half-width of the 95% interval."""
    lines = [f"{'arm':10s}" + "".join(f"{heading:>15s}" for heading, _ in COLUMNS.values())]
    for arm, figures in results["arms"].items():
        cells = []
        for name, (_, factor) in COLUMNS.items():
            entry = figures[name]
            digits = 1 if factor == 100 else 2
            half = factor * (entry["high"] - entry["low"]) / 2
            cells.append(f"{factor * entry['value']:.{digits}f} ±{half:.{digits}f}".rjust(15))
        lines.append(f"{arm:10s}" + "".join(cells))
    for name, entry in results.get("comparisons", {}).items():
        lines.append(
            f"{name}: {100 * entry['value']:+.1f} points, 95% interval "
            f"{100 * entry['low']:+.1f} to {100 * entry['high']:+.1f}, n = {entry['n']}"
        )
    return "\n".join(lines)


def plot_run(path: Path, strategies: Sequence[str], results: Mapping[str, Any]) -> None:
    """Write every plot of a run, or of the first seed of several, into its plots/ folder."""
    arms = results["arms"]
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    metrics = [row for row in metrics if row["seed"] == metrics[0]["seed"]]
    plots = {
        "learning_curves": learning_curves(metrics),
        "accuracy_by_tag": accuracy_by_tag(arms),
        "tag_by_strategy": tag_by_strategy(arms, strategies),
        "pass_at_k": pass_at_k_curves(arms),
    }
    for name, figure in plots.items():
        figure.savefig(path / "plots" / f"{name}.png", dpi=120)


def _figure(columns: int, width: float = 4.2, height: float = 3.4) -> tuple[Figure, list[Any]]:
    """A figure with one row of axes; it belongs to no window, so nothing is global."""
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def learning_curves(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and gradient norm by step, one line per phase; matching entropy where there is one."""
    shown = {
        "trace_nll": "trace NLL (nats per token)",
        "grad_norm": "gradient norm",
        "matching_entropy": "matching entropy (nats)",
    }
    figure, axes = _figure(len(shown))
    for phase in dict.fromkeys(row["phase"] for row in metrics):
        rows = [row for row in metrics if row["phase"] == phase]
        for ax, name in zip(axes, shown, strict=True):
            values = np.array([row[name] for row in rows if name in row])
            if len(values):
                window = max(1, len(values) // 50)
                smooth = np.convolve(values, np.ones(window) / window, mode="valid")
                ax.plot(np.arange(len(smooth)) + window, smooth, label=phase,
                        color=COLOURS.get(phase, "black"), linewidth=1.2)
    for ax, label in zip(axes, shown.values(), strict=True):
        ax.set(xlabel="step", ylabel=label)
    axes[0].set_yscale("log")
    axes[0].legend(frameon=False)
    return figure


def accuracy_by_tag(arms: Mapping[str, Any]) -> Figure:
    """pass@1 under each tag, one group of bars per arm."""
    figure, (ax,) = _figure(1, width=6)
    for i, (arm, figures) in enumerate(arms.items()):
        bars = [tag["pass@1"] for tag in figures["per_tag"]]
        values = np.array([bar["value"] for bar in bars])
        errors = np.array([[b["value"] - b["low"], b["high"] - b["value"]] for b in bars]).T
        places = i + (np.arange(len(bars)) - (len(bars) - 1) / 2) * 0.2
        ax.bar(places, 100 * values, 0.18, yerr=100 * np.abs(errors), color=COLOURS.get(arm),
               ecolor="#444444", capsize=2)
    ax.set_xticks(range(len(arms)), list(arms))
    ax.set(ylabel="pass@1 by tag (%)")
    return figure


def tag_by_strategy(arms: Mapping[str, Any], strategies: Sequence[str]) -> Figure:
    """Heat maps: of the traces under each tag, the share that follows each strategy."""
    figure, axes = _figure(len(arms), width=3.2)
    columns = [*strategies, "none"]
    for ax, (arm, figures) in zip(axes, arms.items(), strict=True):
        counts = np.array(figures["tag_by_strategy"])
        counts = counts[counts.sum(axis=1) > 0]
        shares = counts / counts.sum(axis=1, keepdims=True)
        ax.imshow(shares, cmap="Reds", vmin=0, vmax=1, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8,
                    color="white" if share > 0.6 else "black")
        ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
        ax.set_yticks(range(len(shares)), [f"tag {i}" for i in range(len(shares))])
        information = figures["mutual_information"]
        ax.set_title(f"{arm}: {100 * information['share']:.0f}% of max. MI", fontsize=10)
    return figure


def pass_at_k_curves(arms: Mapping[str, Any]) -> Figure:
    """pass@k by k, samples spread evenly over the arm's tags."""
    figure, (ax,) = _figure(1, width=5)
    for arm, figures in arms.items():
        ks, curve = figures["pass@k"]["k"], figures["pass@k"]["curve"]
        value, low, high = (
            100 * np.array([point[end] for point in curve]) for end in ("value", "low", "high")
        )
        ax.plot(ks, value, marker="o", markersize=3, label=arm, color=COLOURS.get(arm))
        ax.fill_between(ks, low, high, color=COLOURS.get(arm), alpha=0.15, linewidth=0)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.set(xlabel="samples k", ylabel="pass@k (%)")
    ax.legend(frameon=False)
    return figure
