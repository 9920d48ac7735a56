"""What experiments.inference_scaling has measured, as estimates, tables and plots.

Estimates are of one seed, with intervals over its P problems; those of several seeds are joined by
`reports.figures_over_seeds`. The first policy is the one that the others are compared with.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from reasoning.evaluation.estimators import bootstrap, mean_estimate
from reasoning.evaluation.reports import Curve, estimate_curves

# Who answers after the thinking was cut: the policy that thought, or the first one for all.
ANSWERERS = {"own": "answered by the policy itself", "summary": "answered by the fine-tuned policy"}
METHODS = ("pass@k", "cons@k", "weighted@k", "best@k by mean", "best@k by sum")

Measured = Mapping[str, Mapping[str, ArrayLike]]  # by policy: arrays by name
Arrays = Mapping[str, np.ndarray]


def gains(correct: np.ndarray) -> np.ndarray:
    """Accuracy `[P]` at the largest budget less that at the smallest, of `[P, B]`."""
    return correct[:, -1] - correct[:, 0]


def slope(used: np.ndarray, correct: np.ndarray) -> float:
    """Accuracy gained with 10 more tokens of thinking, by least squares over the budgets.

    Args:
      used, correct: `[P, B]`, tokens of thinking and accuracy at each budget.

    Returns:
      0 where all budgets use the same thinking.
    """
    tokens = used.mean(axis=0)
    tokens = tokens - tokens.mean()
    spread = tokens @ tokens
    return float(10 * (tokens @ correct.mean(axis=0)) / spread) if spread else 0.0


def thinking_results(measured: Measured) -> dict[str, Any]:
    """Every policy's accuracy by budget and answerer, how steep it is, and which is steeper.

    Args:
      measured: what `inference_scaling.measure_thinking` returns, of the earliest policy first.
    """
    arrays = {name: _arrays(values) for name, values in measured.items()}
    policies = {
        name: {
            "no budget": {**_mean(each["free"]), "tokens": float(each["free_used"].mean())},
            **{answerer: _thinking_curve(each, answerer) for answerer in ANSWERERS},
        }
        for name, each in arrays.items()
    }
    comparisons = {
        f"{later} less {earlier}": {
            answerer: _steeper(arrays[earlier], arrays[later], answerer) for answerer in ANSWERERS
        }
        for earlier, later in itertools.combinations(arrays, 2)
    }
    return {"policies": policies, "comparisons": comparisons}


def _arrays(values: Mapping[str, ArrayLike]) -> Arrays:
    return {name: np.asarray(value) for name, value in values.items()}


def _mean(values: np.ndarray) -> dict[str, Any]:
    """The mean of values `[P]` with its interval, as an entry of results.json."""
    return mean_estimate(values).as_dict()


def _thinking_curve(of: Arrays, answerer: str) -> dict[str, Any]:
    """A point for each budget, the gain from the smallest to the largest, and the slope."""
    points = [
        {
            **_mean(of[answerer][:, b]),
            "tokens": float(of["used"][:, b].mean()),
            "cut": float(of["cut"][:, b].mean()),
            "cut_and_right": float(of[f"{answerer}_cut"][:, b].mean()),
        }
        for b in range(of["used"].shape[1])
    ]
    return {
        "points": points,
        "gain": _mean(gains(of[answerer])),
        "slope": bootstrap(slope, of["used"], of[answerer]).as_dict(),
    }


def _steeper(a: Arrays, b: Arrays, answerer: str) -> dict[str, Any]:
    """How much more policy b gains from thinking than policy a, on the same problems."""

    def slopes(used: np.ndarray, x: np.ndarray, more_used: np.ndarray, y: np.ndarray) -> float:
        return slope(more_used, y) - slope(used, x)

    steeper = bootstrap(slopes, a["used"], a[answerer], b["used"], b[answerer])
    return {"gain": _mean(gains(b[answerer] - a[answerer])), "slope": steeper.as_dict()}


def samples_results(measured: Measured, ks: Sequence[int]) -> dict[str, Any]:
    """Every policy's accuracy by method and number of samples, and what it is above the first's.

    Args:
      measured: what `inference_scaling.measure_samples` returns.
    """
    arrays = {name: _arrays(values) for name, values in measured.items()}
    first = next(iter(arrays))

    def curve(values: np.ndarray) -> list[dict[str, Any]]:
        return [_mean(column) for column in values.T]

    policies, comparisons = {}, {}
    for name, each in arrays.items():
        length = float(each["tokens"].mean())
        policies[name] = {"tokens": length}
        for method in METHODS:
            policies[name][method] = [
                {**point, "tokens": k * length}
                for k, point in zip(ks, curve(each[method]), strict=True)
            ]
        if name != first:
            comparisons[f"{name} less {first}"] = {
                method: curve(each[method] - arrays[first][method]) for method in METHODS
            }
    return {"policies": policies, "comparisons": comparisons}


def figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """Every plot by name."""
    thinking, samples = results["thinking"], results["samples"]

    def by_answerer(xs: Sequence[int] | None) -> dict[str, dict[str, Curve]]:
        return {
            title: {
                name: _curve(of[answerer]["points"], xs)
                for name, of in thinking["policies"].items()
            }
            for answerer, title in ANSWERERS.items()
        }

    def by_method(xs: Sequence[int] | None) -> dict[str, dict[str, Curve]]:
        return {
            method: {name: _curve(of[method], xs) for name, of in samples["policies"].items()}
            for method in METHODS
        }

    return {
        "thinking": estimate_curves(by_answerer(None), "tokens of thinking used", "accuracy (%)"),
        "budgets": estimate_curves(
            by_answerer(results["budgets"]), "budget of thinking (tokens)", "accuracy (%)"
        ),
        "samples": estimate_curves(
            by_method(results["k"]), "samples k", "accuracy (%)", log_x=True
        ),
        "tokens": estimate_curves(by_method(None), "tokens of k samples", "accuracy (%)"),
    }


def _curve(points: Sequence[Mapping[str, Any]], xs: Sequence[int] | None) -> Curve:
    """Points against these x, or against their tokens."""
    return xs or [point["tokens"] for point in points], points


def table(results: Mapping[str, Any]) -> str:
    """Both studies in percent, with half-widths of the 95% intervals."""
    lines = [f"{results['task']}, {results['problems']} problems, seeds {results['seeds']}"]
    for answerer, title in ANSWERERS.items():
        lines += ["", f"accuracy after at most so many tokens of thinking, {title}"]
        lines += _thinking_table(results["thinking"], results["budgets"], answerer)
    for method in METHODS:
        lines += ["", method, *_samples_table(results["samples"], results["k"], method)]
    return "\n".join(lines)


def _thinking_table(
    thinking: Mapping[str, Any], budgets: Sequence[int], answerer: str
) -> list[str]:
    """A block of lines for each policy, and what is steeper than the first."""
    policies = thinking["policies"]
    lines = [_line("", [*map(str, budgets), "no budget", "gain", "per 10 tokens"])]
    for name, of in policies.items():
        points, curve = of[answerer]["points"], of[answerer]
        shown = *points, of["no budget"], curve["gain"], curve["slope"]
        lines.append(_line(name, [_percent(entry) for entry in shown]))
        lines.append(_line("  tokens used", [f"{point['tokens']:.1f}" for point in points]))
        lines.append(_line("  cut", [f"{100 * point['cut']:.0f}" for point in points]))
        ended = [(p["value"] - p["cut_and_right"], 1 - p["cut"]) for p in points]
        lines.append(_line("  right if not cut", [_share(*each) for each in ended]))
        stopped = [(p["cut_and_right"], p["cut"]) for p in points]
        lines.append(_line("  right if cut", [_share(*each) for each in stopped]))
    for name, compared in thinking["comparisons"].items():
        if name.endswith(f"less {next(iter(policies))}"):
            for figure in ("gain", "slope"):
                lines.append(f"{figure} of {name}: {_difference(compared[answerer][figure])}")
    return lines


def _samples_table(samples: Mapping[str, Any], ks: Sequence[int], method: str) -> list[str]:
    """Two lines for each policy: its accuracy, and what it is above the first's."""
    lines = [_line("", ["tokens of one", *(f"k = {k}" for k in ks)])]
    first = next(iter(samples["policies"]))
    for name, of in samples["policies"].items():
        lines.append(_line(name, [f"{of['tokens']:.1f}", *map(_percent, of[method])]))
        if name != first:
            above = samples["comparisons"][f"{name} less {first}"][method]
            lines.append(_line(f"  less {first}", ["", *map(_percent, above)]))
    return lines


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:20}" + "".join(f"{cell:>15}" for cell in cells)


def _percent(entry: Mapping[str, Any]) -> str:
    """`62.4 ±2.1`."""
    return f"{100 * entry['value']:.1f} ±{50 * (entry['high'] - entry['low']):.1f}"


def _share(part: float, whole: float) -> str:
    """In percent; nothing where there is no whole."""
    return f"{100 * part / whole:.1f}" if whole else ""


def _difference(entry: Mapping[str, Any]) -> str:
    value, low, high = (100 * entry[end] for end in ("value", "low", "high"))
    return f"{value:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}, n = {entry['n']}"
