"""The page of a report: one file that needs no network, made of the parts beside it.

    lines = kept_lines(records, limit=60_000)
    page = make_page(records, [View(marks, strategies, notes)], scores, lines)
    Path("report.html").write_bytes(page)

What a model wrote is data. Tables and captions take texts through `html.escape`, completions lie in
a block of letters and digits and only ever become text nodes, and the page's own policy lets
nothing run but its one script, by its hash, and nothing be fetched from anywhere.
"""

import base64
import dataclasses
import hashlib
import json
import shlex
import string
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from reasoning.evaluation import report_figures as figures
from reasoning.evaluation import report_tables as tables
from reasoning.evaluation.records import Record
from reasoning.evaluation.report_completions import Block, Marks, Scores, completions_block
from reasoning.evaluation.report_figures import NUM_COLOURS, Panel, Styles, svg
from reasoning.evaluation.report_tables import escape

PARTS = Path(__file__).parent / "report_page"
POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; base-uri 'none'; "
    "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
LARGEST_TREE = 200_000  # characters of a results.json that are shown as they are


@dataclasses.dataclass(frozen=True)
class View:
    """What is known of a run beside its directory.

    Attributes:
      marks: judges the steps of its completions.
      strategies: of its task; () where it names none.
      notes: sentences on what its completions are shown with, or why not.
    """

    marks: Marks
    strategies: Sequence[str] = ()
    notes: Sequence[str] = ()


def make_page(
    records: Sequence[Record], views: Sequence[View], scores: Scores,
    lines: Sequence[Sequence[int]],
) -> bytes:
    """The page of one or several runs, in UTF-8.

    Args:
      scores: of the completions whose tokens were scored.
      lines: of each run's completions.jsonl that the page holds (`kept_lines`).
    """
    styles, series = Styles(), series_of(records)
    block = completions_block(records, [view.marks for view in views], scores, lines)
    sections = {
        "Results": _results(records, series, styles),
        "Strategies": _strategies(records, views, series, styles),
        "Learning": _learning(records, series, styles),
        "Rewards": _rewards(records, series, styles),
        "Completions": _completions(records, views, block),
        "Configuration": _configuration(records),
    }
    sections = {name: content for name, content in sections.items() if content}
    names = ", ".join(record.name for record in records)
    main = _heads(records) + "".join(
        f'<section id="{name.lower()}"><h2>{name}</h2>{content}</section>'
        for name, content in sections.items()
    )
    css = (PARTS / "page.css").read_text(encoding="utf-8") + styles.css
    script = (PARTS / "page.js").read_text(encoding="utf-8")
    template = string.Template((PARTS / "page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        policy=POLICY.format(script=_hash(script), style=_hash(css)),
        title=escape(f"Report: {names}"),
        links=" ".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections),
        css=css, main=main, data=block.text, js=script,
    )
    return page.encode("utf-8", errors="replace")  # a model may write half of a surrogate pair


def _hash(content: str) -> str:
    """A script or a style sheet, as the page's policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def series_of(records: Sequence[Record]) -> dict[str, int]:
    """Phase, arm or whose completions they are -> number of the colour, the same everywhere."""
    names = figures.phases_of({record.name: record.metrics for record in records})
    names += [arm for record in records for arm in tables.arms_of(record)]
    names += [str(row.get(chooser_of(record))) for record in records for row in record.completions]
    return {name: i % NUM_COLOURS for i, name in enumerate(dict.fromkeys(names))}


def _heads(records: Sequence[Record]) -> str:
    """What each run is, and how far."""
    heads = "".join(
        f"<div><h1>{escape(record.name)}</h1>{_facts(record)}</div>" for record in records
    )
    return f'<section id="runs"><div class="runs">{heads}</div></section>'


def _facts(record: Record) -> str:
    about, results = record.about, record.results or {}
    versions = about.get("versions") or {}
    facts = {"state": record.state, "program": about["program"]}
    if record.attempts:
        started = record.attempts[0].get("time")
        if isinstance(started, int | float):
            facts["started"] = time.strftime("%Y-%m-%d %H:%M", time.localtime(started))
        if len(record.attempts) > 1:
            facts["attempts"] = f"{len(record.attempts)}, each went on where the last had stopped"
    if "seconds" in results:
        facts["took"] = f"{results['seconds'] / 60:.1f} min in its last attempt"
    facts["device"] = versions.get("device", "not told")
    facts["versions"] = ", ".join(f"{k} {v}" for k, v in versions.items() if k != "device")
    revision, plus, changes = str(about.get("git") or "not told").partition("+")
    facts["revision"] = revision[:12] + plus + changes
    command = about.get("command") or []
    facts["command"] = shlex.join([str(word) for word in command])
    for file, count in record.damaged.items():
        facts[file] = f"{count} damaged line{'s' * (count > 1)} left out, as a kill leaves them"
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f"<dl>{rows}</dl>"


def _results(records: Sequence[Record], series: Mapping[str, int], styles: Styles) -> str:
    """Figures with intervals, differences, pass@k; of a study its own table."""
    parts = []
    if any(tables.arms_of(record) for record in records):
        parts.append(
            "<p class=note>Percent, ± half of the 95% interval; MI in percent of its maximum. "
            "Point at a figure for its interval and n.</p>"
        )
        parts.append(tables.results_table(records, series))
    several = len(records) > 1
    for record in records:
        comparisons = tables.comparisons_table(record)
        if comparisons:
            of = f" · {escape(record.name)}" if several else ""
            parts.append(f"<h3>Paired differences{of}</h3>{comparisons}")
    curves = [
        (series[arm], run, entry["k"], entry["curve"])
        for run, record in enumerate(records)
        for arm, found in tables.arms_of(record).items()
        if isinstance(entry := found.get("pass@k"), Mapping) and "curve" in entry
    ]
    if curves:
        arms = dict.fromkeys(arm for record in records for arm in tables.arms_of(record))
        parts.append(_legend(records, {arm: series[arm] for arm in arms}))
        parts.append(_panels([figures.pass_panel(curves)], styles, "large"))
    for record in records:
        title = f"<h3>{escape(record.name)}</h3>" if several else ""
        if record.table:
            parts.append(f"{title}<pre>{escape(record.table)}</pre>")
        if record.results is None:
            parts.append(f"{title}<p>No results yet. {escape(record.state)}</p>")
        elif not tables.arms_of(record):
            told = json.dumps(record.results, indent=1)
            cut = " The rest is in results.json." if len(told) > LARGEST_TREE else ""
            parts.append(
                f"<details><summary>results.json{' of ' * several}"
                f"{escape(record.name) if several else ''}</summary>"
                f"<pre>{escape(told[:LARGEST_TREE])}</pre>{cut}</details>"
            )
    return "".join(parts)


def _strategies(
    records: Sequence[Record], views: Sequence[View], series: Mapping[str, int], styles: Styles
) -> str:
    """Heat maps of tag by strategy, and the tags' shares in training."""
    parts = []
    for record, view in zip(records, views, strict=True):
        maps = tables.tag_maps(record, view.strategies, series)
        if maps:
            seeds = len((record.results or {}).get("seeds") or [])
            first = f" First of {seeds} seeds: tags mean other things in each." if seeds else ""
            of = f"<h3>{escape(record.name)}</h3>" if len(records) > 1 else ""
            parts.append(
                f"{of}<p class=note>Of the traces under each tag, the percentage that follows each "
                f"strategy.{first}</p><div class='panels tables'>{''.join(maps)}</div>"
            )
    panels = figures.tag_panels({record.name: record.metrics for record in records})
    if panels:
        count = max(len(panel.figure.axes[0].lines) for panel in panels)
        legend = _legend([], {f"tag {i}": i % NUM_COLOURS for i in range(count)})
        parts.append(f"<h3>Tags drawn in reinforcement learning</h3>{legend}")
        parts.append(_panels(panels, styles))
    return "".join(parts)


def _learning(records: Sequence[Record], series: Mapping[str, int], styles: Styles) -> str:
    """Curves of every phase by step."""
    runs = {record.name: record.metrics for record in records}
    learning = figures.learning_panels(runs, series)
    reinforcement = figures.reinforcement_panels(runs, series)
    if not learning and not reinforcement:
        return ""
    parts = [
        "<p class=note>Means over a fiftieth of the steps; of several seeds their mean, in a band "
        "from the smallest to the largest.</p>",
        _legend(records, {phase: series[phase] for phase in figures.phases_of(runs)}),
        _panels(learning, styles),
    ]
    if reinforcement:
        parts.append(f"<h3>Reinforcement learning</h3>{_panels(reinforcement, styles)}")
    return "".join(parts)


def _rewards(records: Sequence[Record], series: Mapping[str, int], styles: Styles) -> str:
    """What the verifier said, in training and at the end, and how long completions were."""
    runs = {record.name: record.metrics for record in records}
    parts = []
    names = dict.fromkeys(
        name.removeprefix("reasons/")
        for rows in runs.values() for row in rows for name, share in row.items()
        if name.startswith("reasons/") and share
    )
    order = sorted(names, key=lambda name: name != "correct")
    palette = dict(zip(order, (2, 3, 1, 4, 5, 6, 7, 0) * 3)) if "correct" in names else {
        name: i % NUM_COLOURS for i, name in enumerate(order)
    }
    panels = figures.reward_panels(runs, palette)
    if panels:
        parts.append(f"<h3>Verdicts on the rollouts</h3>{_legend([], palette)}")
        parts.append(_panels(panels, styles))
    reinforced = {
        phase: series[phase] for phase in figures.phases_of(runs)
        if any(phase in figures.reinforced(rows) for rows in runs.values())
    }
    for title, panels in (
        ("Parts of the reward", figures.part_panels(runs, series)),
        ("Lengths of the rollouts", figures.length_panels(runs, series)),
    ):
        if panels:
            parts.append(f"<h3>{title}</h3>{_legend(records, reinforced)}")
            parts.append(_panels(panels, styles))
    words: dict[tuple[str, int], list[int]] = {}
    for run, record in enumerate(records):
        if not record.completions:
            continue
        key = chooser_of(record)
        of = f" · {escape(record.name)}" if len(records) > 1 else ""
        parts.append(f"<h3>Verdicts on the completions{of}</h3>")
        parts.append(tables.reasons_map(record, key, series))
        for row in tables.final_rows(record):
            own = words.setdefault((str(row.get(key)), run), [])
            own.append(len(str(row.get("completion")).split()))
    if words:
        lines = [(series.get(name, 0), run, counts) for (name, run), counts in words.items()]
        parts.append(_panels([figures.words_panel(lines)], styles, "large"))
    return "".join(parts)


def chooser_of(record: Record) -> str:
    """Which field of a completion says whose it is."""
    row = record.completions[0]
    return next((k for k in ("arm", "policy", "protocol", "cell") if k in row), "reason")


def _completions(records: Sequence[Record], views: Sequence[View], block: Block) -> str:
    """The browser, which the page's script fills."""
    if not block.shown:
        return ""
    notes = [
        f"{record.name}: {note}" if len(records) > 1 else note
        for record, view in zip(records, views, strict=True) for note in view.notes
    ]
    if block.shown < block.total:
        notes.insert(0, (
            f"The page holds {block.shown:,} of {block.total:,} completions: all those of problems "
            "spread evenly over the run."
        ))
    told = "".join(f"<li>{escape(note)}</li>" for note in notes)
    levels = "".join(
        f'<span class="token level-{i}">{text}</span>'
        for i, text in enumerate(("0", "0.02", "0.1", "0.4", "1", "2.5 nats and more"))
    )
    return (
        '<form id="filters"></form>'
        '<div id="told"><span id="count"></span>'
        f'<span id="shades" hidden>shading from {levels} · framed: largest entropy</span>'
        f'<details class="note"><summary>what is shown</summary><ul>{told}</ul></details></div>'
        '<div id="browser"><div id="problems" tabindex="0" role="listbox" aria-label="problems">'
        '<div id="spacer" role="presentation"></div></div>'
        '<div id="traces" tabindex="0" role="region" aria-label="traces"><div id="asked"></div>'
        '<div id="columns"></div></div></div>'
    )


def _configuration(records: Sequence[Record]) -> str:
    """What differs between the runs, and the whole configuration of each."""
    parts = []
    if len(records) > 1:
        parts.append(f"<h3>What differs</h3>{tables.difference_table(records)}")
    for record in records:
        parts.append(
            f"<details><summary>all settings{' of ' if len(records) > 1 else ''}"
            f"{escape(record.name) if len(records) > 1 else ''}</summary>"
            f"{tables.settings_table(record)}</details>"
        )
    return "".join(parts)


def _legend(records: Sequence[Record], series: Mapping[str, int]) -> str:
    """What the colours stand for and, of several runs, the kinds of line."""
    names = [f"<span>{tables.chip(name, series)}</span>" for name in series]
    if len(records) > 1:
        names += [
            f'<span><svg width="28" height="8" aria-hidden="true"><line class="dash-{i % 4}" '
            f'x1="0" x2="28" y1="4" y2="4"/></svg>{escape(record.name)}</span>'
            for i, record in enumerate(records)
        ]
    if len(series) > NUM_COLOURS:
        names.append(f"<small>colours come again after {NUM_COLOURS}</small>")
    return f'<div class="legend">{"".join(names)}</div>'


def _panels(panels: Sequence[Panel], styles: Styles, kind: str = "") -> str:
    """Figures side by side, as many as the window has room for."""
    drawn = "".join(
        f"<figure><figcaption>{escape(panel.title)}</figcaption>"
        f"{svg(panel.figure, styles)}</figure>"
        for panel in panels
    )
    return f'<div class="panels {kind}">{drawn}</div>'
