"""What experiments.inference_scaling has measured, as estimates, tables and plots.

A policy's measurements are those of every seed of the run, and become arrays `[seeds, P, ...]` of P
problems. The first policy is the one that the others are compared with.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reasoning.evaluation.estimators import bootstrap, runs_estimate
from reasoning.evaluation.reports import Curve, estimate_curves

# Who answers after the thinking was cut: the policy that thought, or the first one for all.
ANSWERERS = {"own": "answered by the policy itself", "summary": "answered by the fine-tuned policy"}
METHODS = ("pass@k", "cons@k", "weighted@k", "best@k by mean", "best@k by sum")

Measured = Mapping[str, Sequence[Mapping[str, Any]]]  # by policy, of each seed
Arrays = Mapping[str, np.ndarray]


def estimate(statistic: Callable[..., float], *arrays: np.ndarray) -> dict[str, Any]:
    """A statistic of arrays `[seeds, P, ...]`, with its interval.

    Of one seed the interval is over problems (the same ones are drawn from every array: what is
    paired stays so), of several over seeds.
    """
    if len(arrays[0]) == 1:
        return bootstrap(statistic, *(array[0] for array in arrays)).as_dict()
    return runs_estimate([statistic(*each) for each in zip(*arrays, strict=True)]).as_dict()


def gain(correct: np.ndarray) -> float:
    """Accuracy at the largest budget less that at the smallest, of `[P, B]`."""
    return float((correct[:, -1] - correct[:, 0]).mean())


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


def thinking_results(measured: Measured, budgets: Sequence[int]) -> dict[str, Any]:
    """Every policy's accuracy by budget and answerer, how steep it is, and which is steeper.

    Args:
      measured: what `inference_scaling.measure_thinking` returns; the policies from the earliest
        to the latest.
    """
    arrays = {name: _stacked(seeds) for name, seeds in measured.items()}
    policies = {
        name: {
            "no budget": {
                **estimate(np.mean, each["free"]), "tokens": float(each["free_used"].mean())
            },
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
    return {"budgets": list(budgets), "policies": policies, "comparisons": comparisons}


def _stacked(seeds: Sequence[Mapping[str, Any]]) -> Arrays:
    """The measurements of one policy as arrays `[seeds, P, ...]`."""
    return {name: np.array([seed[name] for seed in seeds]) for name in seeds[0]}


def _thinking_curve(of: Arrays, answerer: str) -> dict[str, Any]:
    """A point for each budget, the gain from the smallest to the largest, and the slope."""
    correct, cut = of[answerer], of["cut"].mean(axis=(0, 1))
    right = of[f"{answerer}_cut"].mean(axis=(0, 1))
    points = [
        {
            **estimate(np.mean, correct[..., b]),
            "tokens": float(of["used"][..., b].mean()),
            "cut": float(cut[b]),
            "accuracy_if_cut": float(right[b] / cut[b]) if cut[b] else None,
        }
        for b in range(correct.shape[-1])
    ]
    steepness = {
        "gain": estimate(gain, correct), "slope": estimate(slope, of["used"], correct)
    }
    return {"points": points, **steepness}


def _steeper(a: Arrays, b: Arrays, answerer: str) -> dict[str, Any]:
    """How much more policy b gains from thinking than policy a, on the same problems."""

    def slopes(used: np.ndarray, x: np.ndarray, more_used: np.ndarray, y: np.ndarray) -> float:
        return slope(more_used, y) - slope(used, x)

    return {
        "gain": estimate(gain, b[answerer] - a[answerer]),
        "slope": estimate(slopes, a["used"], a[answerer], b["used"], b[answerer]),
    }


def samples_results(measured: Measured, ks: Sequence[int]) -> dict[str, Any]:
    """Every policy's accuracy by method and number of samples, and what it is above the first's.

    Args:
      measured: what `inference_scaling.measure_samples` returns.
    """
    arrays = {name: _stacked(seeds) for name, seeds in measured.items()}
    first = next(iter(arrays))

    def curve(values: np.ndarray) -> list[dict[str, Any]]:
        return [estimate(np.mean, values[..., i]) for i in range(len(ks))]

    policies, comparisons = {}, {}
    for name, each in arrays.items():
        length = float(each["tokens"].mean())
        policies[name] = {"tokens": length} | {
            method: [
                {**point, "tokens": k * length} for k, point in zip(ks, curve(each[method]))
            ]
            for method in METHODS
        }
        if name != first:
            comparisons[f"{name} less {first}"] = {
                method: curve(each[method] - arrays[first][method]) for method in METHODS
            }
    return {"k": list(ks), "policies": policies, "comparisons": comparisons}


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
            by_answerer(thinking["budgets"]), "budget of thinking (tokens)", "accuracy (%)"
        ),
        "samples": estimate_curves(
            by_method(samples["k"]), "samples k", "accuracy (%)", log_x=True
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
        lines += _thinking_table(results["thinking"], answerer)
    for method in METHODS:
        lines += ["", method, *_samples_table(results["samples"], method)]
    return "\n".join(lines)


def _thinking_table(thinking: Mapping[str, Any], answerer: str) -> list[str]:
    """A block of lines for each policy, and what is steeper than the first."""
    budgets, policies = [str(budget) for budget in thinking["budgets"]], thinking["policies"]
    lines = [_line("", [*budgets, "no budget", "gain", "per 10 tokens"])]
    for name, of in policies.items():
        points, curve = of[answerer]["points"], of[answerer]
        shown = *points, of["no budget"], curve["gain"], curve["slope"]
        lines.append(_line(name, [_percent(entry) for entry in shown]))
        lines.append(_line("  tokens used", [f"{point['tokens']:.1f}" for point in points]))
        lines.append(_line("  cut", [f"{100 * point['cut']:.0f}" for point in points]))
        right = [point["accuracy_if_cut"] for point in points]
        lines.append(
            _line("  right if cut", ["" if x is None else f"{100 * x:.1f}" for x in right])
        )
    for name, compared in thinking["comparisons"].items():
        if name.endswith(f"less {next(iter(policies))}"):
            for figure in ("gain", "slope"):
                lines.append(f"{figure} of {name}: {_difference(compared[answerer][figure])}")
    return lines


def _samples_table(samples: Mapping[str, Any], method: str) -> list[str]:
    """Two lines for each policy: its accuracy, and what it is above the first's."""
    lines = [_line("", ["tokens of one", *(f"k = {k}" for k in samples["k"])])]
    first = next(iter(samples["policies"]))
    for name, of in samples["policies"].items():
        lines.append(_line(name, [f"{of['tokens']:.1f}", *map(_percent, of[method])]))
        if name != first:
            above = samples["comparisons"][f"{name} less {first}"][method]
            lines.append(_line(f"  less {first}", ["", *map(_percent, above)]))
    return lines


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:16}" + "".join(f"{cell:>15}" for cell in cells)


def _percent(entry: Mapping[str, Any]) -> str:
    """`62.4 ±2.1`."""
    return f"{100 * entry['value']:.1f} ±{50 * (entry['high'] - entry['low']):.1f}"


def _difference(entry: Mapping[str, Any]) -> str:
    value, low, high = (100 * entry[end] for end in ("value", "low", "high"))
    return f"{value:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}, n = {entry['n']}"
