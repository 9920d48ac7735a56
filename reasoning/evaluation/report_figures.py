"""Figures of the report's page: small SVG panels whose colours are variables of its style sheet.

    styles = Styles()
    panels = learning_panels({"run": metrics}, series)
    markup = [svg(panel.figure, styles) for panel in panels]

Every panel is a figure of its own, so that the page lays them out as wide as its window is. What a
line stands for is told by the page: one colour an arm, one kind of line a run.
"""

import dataclasses
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from reasoning.evaluation.reports import LEARNING, REINFORCEMENT

Rows = Sequence[Mapping[str, Any]]
NUM_COLOURS = 8  # of the style sheet: --series-0 and on
LINES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))  # of the runs, in their order
LENGTHS = {
    "completions/mean_length": "mean length (tokens)",
    "completions/max_length": "longest (tokens)",
    "completions/clipped_ratio": "share that did not end",
}
# Not worth a panel of its own: counters, and what other panels show.
LEFT_OUT = ("phase", "step", "seed", "tokens", "num_tokens", "skipped_in_a_row")
# matplotlib wants colours; these stand for variables of the style sheet.
INK, MUTED, PAPER = "#5e5e01", "#5e5e02", "#5e5e03"
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", PAPER: "var(--paper)"} | {
    f"#5e51{i:02x}": f"var(--series-{i})" for i in range(NUM_COLOURS)
}
SETTINGS = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 8, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": MUTED, "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": MUTED, "grid.alpha": 0.2,
    "grid.linewidth": 0.5, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4, "ytick.minor.width": 0.4, "lines.linewidth": 1.3,
    "svg.hashsalt": "report",
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """A figure and what it shows."""

    title: str
    figure: Figure


class Styles:
    """The classes that stand for the style attributes of figures: a page may forbid those."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self.figures = 0  # so far: each has ids of its own

    def of(self, style: str) -> str:
        """The class of a style."""
        for colour, variable in VARIABLES.items():
            style = style.replace(colour, variable)
        # Sizes and weights stay; the page chooses the family.
        style = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", style)
        return self._classes.setdefault(style, f"f{len(self._classes)}")

    @property
    def css(self) -> str:
        """The rules of all classes given out so far."""
        return "\n".join(f".{name} {{ {style} }}" for style, name in self._classes.items())


def svg(figure: Figure, styles: Styles) -> str:
    """A figure as markup for the middle of a page: no styles, scripts or links, ids of its own."""
    with matplotlib.rc_context(SETTINGS):
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(file.getvalue())
    styles.figures += 1
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "style":
                element.set("class", styles.of(value))
            elif name == "id":
                element.set("id", f"v{styles.figures}{value}")
            else:
                value = re.sub(r"^(url\()?#", rf"\g<1>#v{styles.figures}", value)
                element.set(name, VARIABLES.get(value, value))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("aria-hidden", "true")
    return ET.tostring(root, encoding="unicode")


def printable(text: str) -> str:
    """A text that any font and parser can take."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def colour(number: int) -> str:
    """What stands for the colour of a series."""
    return f"#5e51{number % NUM_COLOURS:02x}"


def _panel(title: str, xlabel: str = "step", width: float = 3.4, height: float = 2.15) -> Panel:
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        ax = figure.subplots()
        ax.set_xlabel(printable(xlabel))
    return Panel(printable(title), figure)


def phases_of(runs: Mapping[str, Rows]) -> list[str]:
    """The phases that the runs have logged, in their order."""
    names = (str(row.get("phase")) for rows in runs.values() for row in rows)
    return list(dict.fromkeys(names))


def reinforced(rows: Rows) -> set[str]:
    """The phases of a run that reinforcement learning has trained."""
    return {str(row.get("phase")) for row in rows if "reward" in row}


def learning_panels(runs: Mapping[str, Rows], series: Mapping[str, int]) -> list[Panel]:
    """Curves of the phases that were trained on given completions: loss, gradient norm, ...

    Args:
      runs: name -> lines of metrics.jsonl.
      series: phase -> number of its colour.
    """
    kept = _of_kind(runs, by_reward=False)
    names = _scalars(kept)
    shown = {name: LEARNING[name] for name in LEARNING if name in names}
    shown |= {name: name for name in names if name not in shown}
    if "trace_nll" in shown:
        shown.pop("loss", None)  # the same, but for the tags' share
    logarithmic = ("trace_nll", "loss", "grad_norm")
    return [
        curve_panel(kept, series, name, label, log=name in logarithmic)
        for name, label in shown.items()
    ]


def reinforcement_panels(runs: Mapping[str, Rows], series: Mapping[str, int]) -> list[Panel]:
    """Reward, validation accuracy, entropy and what else reinforcement learning changes."""
    kept = _of_kind(runs, by_reward=True)
    names = _scalars(kept)
    shown = {n: label for n, label in REINFORCEMENT.items() if n in names and n not in LENGTHS}
    shown |= {n: n for n in names if n.startswith("validation/") and n not in shown}
    shown |= {n: n for n in ("kl", "grad_norm") if n in names}
    return [curve_panel(kept, series, name, label) for name, label in shown.items()]


def length_panels(runs: Mapping[str, Rows], series: Mapping[str, int]) -> list[Panel]:
    """Lengths of the rollouts by step."""
    kept = _of_kind(runs, by_reward=True)
    names = _scalars(kept)
    return [
        curve_panel(kept, series, name, label) for name, label in LENGTHS.items() if name in names
    ]


def part_panels(runs: Mapping[str, Rows], series: Mapping[str, int]) -> list[Panel]:
    """What the reward is put together of, and the patterns that it penalises, by step."""
    kept = _of_kind(runs, by_reward=True)
    names = [name for name in _scalars(kept)
             if (name.startswith("rewards/") and name.endswith("/mean"))
             or name.startswith("patterns/")]
    used = [n for n in names if any(row.get(n) for rows in kept.values() for row in rows)]
    return [curve_panel(kept, series, name, name) for name in used]


def reward_panels(runs: Mapping[str, Rows], reasons: Mapping[str, int]) -> list[Panel]:
    """What the verifier said of the rollouts, as shares by step: a panel a run and phase.

    Of several seeds their mean.

    Args:
      reasons: reason -> number of its colour.
    """
    panels = []
    for run, rows in runs.items():
        for phase in sorted(reinforced(rows)):
            names = [f"reasons/{r}" for r in reasons]
            # A reason that a step does not tell had no rollout there.
            told = [
                {**row, **{name: _share(row.get(name)) for name in names}}
                for row in rows if str(row.get("phase")) == phase and "reward" in row
            ]
            shares = {r: _mean_curve(_by_seed(told), f"reasons/{r}") for r in reasons}
            shares = {r: found for r, found in shares.items() if found and np.nanmax(found[1]) > 0}
            if not shares:
                continue
            panel = _panel(f"{phase} · {run}" if len(runs) > 1 else phase)
            with matplotlib.rc_context(SETTINGS):
                ax = panel.figure.axes[0]
                steps = next(iter(shares.values()))[0]
                ax.stackplot(
                    steps, *(100 * np.nan_to_num(found[1]) for found in shares.values()),
                    colors=[colour(reasons[r]) for r in shares], alpha=0.85, linewidth=0,
                )
                ax.set(ylabel="% of rollouts", ylim=(0, 100), xlim=(steps[0], steps[-1] or 1))
            panels.append(panel)
    return panels


def tag_panels(runs: Mapping[str, Rows]) -> list[Panel]:
    """The share of each tag in the rollouts by step: a panel a run and phase, a colour a tag.

    Of several seeds the first: tags are exchangeable between seeds.
    """
    panels = []
    for run, rows in runs.items():
        for phase in sorted(reinforced(rows)):
            told = [
                {**row, **{f"tag {i}": share for i, share in enumerate(row["tags/share"])}}
                for row in rows
                if str(row.get("phase")) == phase and isinstance(row.get("tags/share"), list)
            ]
            seeds = _by_seed(told)
            told = seeds[0] if seeds else []
            tags = list(dict.fromkeys(k for row in told for k in row if k.startswith("tag ")))
            if sum(any(row.get(tag) for row in told) for tag in tags) < 2:
                continue
            title = f"{phase} · {run}" if len(runs) > 1 else phase
            first = f" · seed {told[0].get('seed')}, the first" if len(seeds) > 1 else ""
            panel = _panel(title + first)
            for i, tag in enumerate(tags):
                _line(panel, _mean_curve([told], tag), colour(i), LINES[0], 100)
            with matplotlib.rc_context(SETTINGS):
                panel.figure.axes[0].set(ylabel="% of rollouts", ylim=(0, 100))
            panels.append(panel)
    return panels


def curve_panel(
    runs: Mapping[str, Rows], series: Mapping[str, int], name: str, label: str, log: bool = False
) -> Panel:
    """One metric by step, a line a phase and run; of seeds their mean in a band of their range."""
    panel = _panel(label)
    for i, rows in enumerate(runs.values()):
        for phase, number in series.items():
            own = [row for row in rows if str(row.get("phase")) == phase and name in row]
            _line(panel, _mean_curve(_by_seed(own), name), colour(number), LINES[i % len(LINES)])
    if log:
        with matplotlib.rc_context(SETTINGS):
            ax = panel.figure.axes[0]
            ax.set_yscale("log", nonpositive="mask")
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
    return panel


def pass_panel(curves: Sequence[tuple[int, int, Sequence[float], Rows]]) -> Panel:
    """pass@k by k with its interval as a band.

    Args:
      curves: number of the colour, number of the run, ks, and estimates at each.
    """
    panel = _panel("pass@k, samples spread evenly over the tags", "samples k", 5.2, 3.0)
    with matplotlib.rc_context(SETTINGS):
        ax = panel.figure.axes[0]
        for number, run, ks, points in curves:
            value, low, high = (
                100 * np.array([point[end] for point in points], float)
                for end in ("value", "low", "high")
            )
            line = LINES[run % len(LINES)]
            ax.plot(ks, value, marker="o", markersize=2.5, color=colour(number), linestyle=line)
            ax.fill_between(ks, low, high, color=colour(number), alpha=0.12, linewidth=0)
        ticks = sorted({k for _, _, ks, _ in curves for k in ks})
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [f"{k:g}" for k in ticks])
        ax.minorticks_off()
        ax.set_ylabel("pass@k (%)")
    return panel


def words_panel(lengths: Sequence[tuple[int, int, Sequence[int]]]) -> Panel:
    """How many words the completions of the evaluation have: share of them up to each length.

    Args:
      lengths: number of the colour, number of the run, words of each completion.
    """
    panel = _panel("words of a completion", "words", 5.2, 3.0)
    with matplotlib.rc_context(SETTINGS):
        ax = panel.figure.axes[0]
        for number, run, words in lengths:
            at, counts = np.unique(words, return_counts=True)
            ax.step(
                at, 100 * np.cumsum(counts) / len(words), where="post", color=colour(number),
                linestyle=LINES[run % len(LINES)],
            )
        ax.set(ylabel="% of completions up to it", ylim=(0, 101))
    return panel


def _of_kind(runs: Mapping[str, Rows], by_reward: bool) -> dict[str, Rows]:
    """The lines of the phases that reinforcement learning has trained, or of the others."""
    kept = {}
    for run, rows in runs.items():
        phases = reinforced(rows)
        kept[run] = [row for row in rows if (str(row.get("phase")) in phases) == by_reward]
    return kept


def _scalars(runs: Mapping[str, Rows]) -> list[str]:
    """The metrics that are single numbers, in the order in which they come up."""
    names: dict[str, None] = {}
    for row in (row for rows in runs.values() for row in rows):
        for name, value in row.items():
            if name not in names and name not in LEFT_OUT and _is_number(value):
                names[name] = None
    return list(names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _share(value: Any) -> float:
    """A share that a row tells; 0 where it tells none."""
    return value if _is_number(value) and np.isfinite(value) else 0.0


def _by_seed(rows: Rows) -> list[Rows]:
    """The lines of each seed, the first that comes up first."""
    seeds: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        seeds.setdefault(str(row.get("seed")), []).append(row)
    return list(seeds.values())


Curve = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # steps, mean, least, most


def _mean_curve(seeds: Iterable[Rows], name: str) -> Curve | None:
    """A metric's mean and range over seeds, as means over a fiftieth of the steps.

    A training metric belongs to the end of its step, a validation metric to the start. Seeds that
    have come less far end sooner.
    """
    done = 0 if name.startswith("validation/") else 1
    each = [
        {row["step"] + done: row[name] for row in rows
         if _is_number(row.get(name)) and _is_number(row.get("step"))}
        for rows in seeds
    ]
    steps = sorted({step for values in each for step in values})
    if not steps:
        return None
    values = np.array([[found.get(step, np.nan) for step in steps] for found in each], float)
    window = max(1, len(steps) // 50)
    chunks = [values[:, at : at + window] for at in range(0, len(steps), window)]
    known = [at for at, chunk in enumerate(chunks) if np.isfinite(chunk).any()]
    if not known:
        return None
    means = np.array([
        [row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in chunks[at]]
        for at in known
    ])
    last = np.array([steps[min((at + 1) * window, len(steps)) - 1] for at in known])
    return last, np.nanmean(means, 1), np.nanmin(means, 1), np.nanmax(means, 1)


def _line(panel: Panel, curve: Curve | None, colour: str, line: Any, scale: float = 1) -> None:
    """Draw a curve; a point where there is only one."""
    if curve is None:
        return
    steps, mean, least, most = curve
    with matplotlib.rc_context(SETTINGS):
        ax = panel.figure.axes[0]
        marker = {"marker": "o", "markersize": 2.5} if len(steps) < 8 else {}
        ax.plot(steps, scale * mean, color=colour, linestyle=line, **marker)
        if (most > least).any():
            ax.fill_between(
                steps, scale * least, scale * most, color=colour, alpha=0.18, linewidth=0
            )
