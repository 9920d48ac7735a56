"""Tables of a report's page, as HTML: figures with intervals, differences, heat maps, settings.

Every text that comes from a run goes through `escape`. No style attributes: colours are classes.
"""

import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reasoning.evaluation.records import Record, differences, flattened
from reasoning.evaluation.reports import COLUMNS

# Figures that are counts or nats, not shares: name -> heading.
NUMBERS = {"tag_usage": "tags in use", "vendi": "Vendi score"}
HEADINGS = COLUMNS | {
    "greedy": "greedy", "retried": "retried", "recovered": "recovered", "over_long": "over-long",
    "no_answer": "no answer", "trace_validity": "valid steps", "recognised": "recognised",
    "distinct_2": "distinct-2",
}
LEVELS = 10  # of a heat map: classes heat-0 .. heat-10


def escape(text: Any) -> str:
    """A text of a run as text of the page."""
    return html.escape(str(text), quote=True)


def results_table(records: Sequence[Record], series: Mapping[str, int]) -> str:
    """One row per arm and run: every figure that has an interval, in percent where it is a share.

    Args:
      series: arm -> number of its colour.
    """
    rows = [
        (record, arm, figures)
        for record in records
        for arm, figures in arms_of(record).items()
    ]
    found = dict.fromkeys(
        name for _, _, figures in rows for name, entry in figures.items() if _is_estimate(entry)
    )
    names = [name for name in HEADINGS if name in found]
    names += [name for name in found if name not in names]
    headings = HEADINGS | NUMBERS
    head = "".join(f"<th>{escape(headings.get(name, name))}</th>" for name in names)
    body = []
    for record, arm, figures in rows:
        run = f"<td class=text>{escape(record.name)}</td>" if len(records) > 1 else ""
        cells = "".join(_cell(name, figures.get(name)) for name in names)
        body.append(f"<tr><th>{chip(arm, series)}</th>{run}{cells}</tr>")
    run = "<th class=text>run</th>" if len(records) > 1 else ""
    return _table(f"<tr><th>arm</th>{run}{head}</tr>", body)


def _is_estimate(entry: Any) -> bool:
    return isinstance(entry, Mapping) and {"value", "low", "high"} <= set(entry)


def _cell(name: str, entry: Any) -> str:
    """`62.4 ±2.1`, with the interval itself to point at."""
    if not _is_estimate(entry):
        return "<td></td>"
    unit = 1.0 if name in NUMBERS else 100 / (entry.get("maximum", 1.0) or 1.0)
    digits = 2 if name in NUMBERS else 1
    value, low, high = (unit * entry[end] for end in ("value", "low", "high"))
    told = f"95% interval {low:.{digits}f} to {high:.{digits}f}, n = {entry.get('n', '?')}"
    return (
        f'<td title="{escape(told)}">{value:.{digits}f} '
        f"<small>±{(high - low) / 2:.{digits}f}</small></td>"
    )


def comparisons_table(record: Record) -> str:
    """Paired differences in points, each with its interval as numbers and as a line."""
    entries = (record.results or {}).get("comparisons") or {}
    entries = {name: entry for name, entry in entries.items() if _is_estimate(entry)}
    reach = max((100 * abs(entry[end]) for entry in entries.values() for end in ("low", "high")),
                default=1.0) or 1.0
    body = []
    for name, entry in entries.items():
        value, low, high = (100 * entry[end] for end in ("value", "low", "high"))
        clear = "clear" if low > 0 or high < 0 else "open"
        body.append(
            f"<tr class={clear}><th>{escape(name)}</th><td>{value:+.1f}</td>"
            f"<td>{low:+.1f} to {high:+.1f}</td><td>{escape(entry.get('n', ''))}</td>"
            f"<td>{_interval_line(value / reach, low / reach, high / reach)}</td></tr>"
        )
    head = "<tr><th>difference</th><th>points</th><th>95% interval</th><th>n</th><th></th></tr>"
    return _table(head, body) if body else ""


def _interval_line(value: float, low: float, high: float) -> str:
    """An interval within -1..1 as a line with its zero."""
    at = [round(80 + 74 * x, 1) for x in (low, high, value)]
    return (
        '<svg class="interval" viewBox="0 0 160 14" width="160" height="14" aria-hidden="true">'
        '<line class="zero" x1="80" x2="80" y1="0" y2="14"/>'
        f'<line class="range" x1="{at[0]}" x2="{at[1]}" y1="7" y2="7"/>'
        f'<circle class="value" cx="{at[2]}" cy="7" r="2.5"/></svg>'
    )


def heat_map(rows: Mapping[str, Sequence[float]], columns: Sequence[str], corner: str) -> str:
    """Shares of each row in percent, darker where larger; what is 0 in a whole column is left out.

    Args:
      rows: name -> counts, one per column.
    """
    used = [i for i in range(len(columns)) if any(counts[i] for counts in rows.values())]
    body = []
    for name, counts in rows.items():
        total = sum(counts)
        shares = [counts[i] / total if total else 0.0 for i in used]
        cells = "".join(
            f'<td class="heat-{round(LEVELS * share)}" title="{counts[i]:g} of {total:g}">'
            f"{100 * share:.0f}</td>"
            for i, share in zip(used, shares)
        )
        body.append(f"<tr><th>{name}</th>{cells}</tr>")
    head = "".join(f"<th>{escape(columns[i])}</th>" for i in used)
    return _table(f"<tr><th>{escape(corner)}</th>{head}</tr>", body, "heat")


def tag_maps(record: Record, strategies: Sequence[str], series: Mapping[str, int]) -> list[str]:
    """Of each arm: of the traces under each tag, the share that follows each strategy.

    Of several seeds the first is shown: tags are exchangeable between seeds.
    """
    maps = []
    for arm, figures in first_arms_of(record).items():
        counts = figures.get("tag_by_strategy")
        if not isinstance(counts, list) or not counts:
            continue
        names = [*strategies, "none"]
        if len(counts[0]) != len(names):  # another version's strategies
            names = [*(f"strategy {i}" for i in range(len(counts[0]) - 1)), "none"]
        rows = {f"tag {tag}": each for tag, each in enumerate(counts) if sum(each)}
        share = (figures.get("mutual_information") or {}).get("share")
        told = f" <small>MI {100 * share:.0f}% of its maximum</small>" if share is not None else ""
        per_tag = _per_tag(figures)
        maps.append(
            f"<figure><figcaption>{chip(arm, series)}{told}</figcaption>"
            f"{heat_map(rows, names, '')}{per_tag}</figure>"
        )
    return maps


def _per_tag(figures: Mapping[str, Any]) -> str:
    """pass@1, length and valid steps under each tag."""
    body = []
    for tag in figures.get("per_tag") or []:
        validity = tag.get("validity")
        valid = f"{100 * validity:.0f}" if isinstance(validity, float) else ""
        body.append(
            f"<tr><th>tag {escape(tag.get('tag'))}</th>{_cell('pass@1', tag.get('pass@1'))}"
            f"<td>{tag.get('length', float('nan')):.1f}</td><td>{valid}</td></tr>"
        )
    head = "<tr><th></th><th>pass@1</th><th>tokens</th><th>valid steps %</th></tr>"
    return _table(head, body) if body else ""


def reasons_map(record: Record, arm_key: str, series: Mapping[str, int]) -> str:
    """Of each arm's completions at the end, the share of each of the verifier's reasons."""
    counts: dict[str, Counter] = {}
    for row in final_rows(record):
        counts.setdefault(str(row.get(arm_key)), Counter())[str(row.get("reason"))] += 1
    totals = sum(counts.values(), Counter())
    reasons = [reason for reason, _ in totals.most_common()]
    rows = {chip(arm, series): [of[r] for r in reasons] for arm, of in counts.items()}
    return heat_map(rows, reasons, arm_key) if rows else ""


def final_rows(record: Record) -> list[Mapping[str, Any]]:
    """Completions of the evaluation: those of a validation during training tell their step."""
    final = [row for row in record.completions if row.get("step") is None]
    return final or list(record.completions)


def difference_table(records: Sequence[Record]) -> str:
    """The settings that differ between runs; "" for one run."""
    if len(records) < 2:
        return ""
    programs = [record.about["program"] for record in records]
    found = differences([record.config for record in records])
    if len(set(programs)) > 1:
        found = {"program": programs, **found}
    if not found:
        return "<p>The configurations are the same.</p>"
    head = "".join(f"<th class=text>{escape(record.name)}</th>" for record in records)
    body = [
        f"<tr><th>{escape(key)}</th>"
        + "".join(f"<td class=text>{_setting(value)}</td>" for value in values) + "</tr>"
        for key, values in found.items()
    ]
    return _table(f"<tr><th>setting</th>{head}</tr>", body)


def settings_table(record: Record) -> str:
    """The whole configuration of a run."""
    body = [
        f"<tr><th>{escape(key)}</th><td class=text>{_setting(value)}</td></tr>"
        for key, value in flattened(record.config).items()
    ]
    return _table("", body, "settings")


def _setting(value: Any) -> str:
    return escape(value if isinstance(value, str) else json.dumps(value))


def chip(name: str, series: Mapping[str, int]) -> str:
    """A name in the colour of its lines."""
    known = series.get(name)
    colour = "" if known is None else f'<i class="chip series-{known}"></i>'
    return f"{colour}{escape(name)}"


def arms_of(record: Record) -> Mapping[str, Any]:
    """The figures of each arm; {} for a study without arms, or a run that has not finished."""
    arms = (record.results or {}).get("arms")
    if not isinstance(arms, Mapping):
        return {}
    return {arm: figures for arm, figures in arms.items() if isinstance(figures, Mapping)}


def first_arms_of(record: Record) -> Mapping[str, Any]:
    """As `arms_of`, of the first seed where there are several."""
    seeds = (record.results or {}).get("seeds")
    if isinstance(seeds, list) and seeds and isinstance(seeds[0], Mapping) and "arms" in seeds[0]:
        return seeds[0]["arms"]
    return arms_of(record)


def _table(head: str, body: Iterable[str], kind: str = "") -> str:
    top = f"<thead>{head}</thead>" if head else ""
    rows = "".join(body)
    return f'<div class="wide"><table class="{kind}">{top}<tbody>{rows}</tbody></table></div>'
