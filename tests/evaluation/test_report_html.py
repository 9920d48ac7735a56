"""The page of a report: what it holds is what the run holds, and no text of a run is markup."""

import base64
import gzip
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest

from reasoning.data.tasks import make_task
from reasoning.data.tasks.base import parse_completion
from reasoning.evaluation import report_figures as figures
from reasoning.evaluation.records import read_record, read_records
from reasoning.evaluation.report_completions import (
    completions_block,
    kept_lines,
    no_marks,
    step_marks,
)
from reasoning.evaluation.report_html import View, make_page
from reasoning.evaluation.token_scores import TokenScores

HOSTILE = (
    "</script><script>window.hacked = 1</script>", "<!--<script>", "--><!doctype html>",
    '<img src=x onerror="window.hacked = 1">', "<svg onload=window.hacked=1>",
    '"><b id=injected>', "' onfocus=window.hacked=1 autofocus '", "</title></style></dialog>",
    "javascript:window.hacked=1", "${window.hacked = 1}", "$css $js $data $$", "]]>",
    "&lt;script&gt;&amp;#60;", "\u2028\u2029", "\ud800", "\x00\x1b[31m\x08", "\u202eevil",
    "$\\frac{", "__proto__", "constructor", "_hidden", "} * { display: none } .a {",
)


def hostile_rows():
    """A completion for each hostile text, which is each of its fields and a field's name."""
    return [
        {"seed": 0, "arm": text, "step": None, text: text, "prompt": text, "tag": i % 2,
         "completion": f"{text} {text}", "reward": 0.0, "correct": bool(i % 2), "reason": text,
         "answer": text, "method": text, "milliseconds": 0.1, "strategy": text,
         "validity": math.nan}
        for i, text in enumerate(HOSTILE)
    ]


def hostile_run(write_run, name="hostile"):
    """A run whose every text is hostile: completions, prompts, arms, phases, metrics, settings."""
    figures = {"pass@1": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}}
    return write_run(
        name, hostile_rows(),
        [{"phase": text, "step": step, "seed": 0, "loss": 1.0, HOSTILE[i % 3]: 2.0}
         for i, text in enumerate(HOSTILE) for step in range(2)],
        {"arms": {text: {**figures, text: figures["pass@1"]} for text in HOSTILE},
         "comparisons": {text: figures["pass@1"] for text in HOSTILE}, "seconds": 1.0},
        {text: text for text in HOSTILE}, table="\n".join(HOSTILE[:-8]), program=HOSTILE[0],
    )


def page_of(*paths, marks=no_marks, scores=None, limit=1000):
    records = read_records([str(path) for path in paths])
    views = [View(marks, ("a", "b"), ["a note"]) for _ in records]
    return make_page(records, views, scores or {}, kept_lines(records, limit)).decode()


def block_of(page):
    """What the page's script reads."""
    text = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(text)))


def rows_of(data):
    """The rows that the columns stand for."""
    columns = {name: [column["values"][at] for at in column["at"]]
               for name, column in data["columns"].items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(data["rows"])]


class Elements(HTMLParser):
    """The elements and attributes of a page, as any reader of HTML finds them."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_data_of_a_page_are_the_completions(write_run):
    rows = [
        {"arm": "mixed", "prompt": f"p{i % 3}", "tag": i % 2, "completion": f"c {i}", "correct":
         bool(i % 2), "reason": "correct", "validity": i / 7, "answer": None, "milliseconds": 0.1}
        for i in range(20)
    ]
    data = block_of(page_of(write_run("it", rows)))
    assert data["choosers"] == ["run", "arm"]
    expected = [{"run": "it", **row, "steps": None} for row in rows]
    assert rows_of(data) == [{k: v for k, v in row.items() if k != "milliseconds"}
                             for row in expected]


def test_hostile_texts_come_back_as_they_were(write_run):
    data = block_of(page_of(hostile_run(write_run)))
    for found, row in zip(rows_of(data), hostile_rows(), strict=True):
        del row["milliseconds"]
        row["validity"] = "nan"  # JSON has no such number
        assert {name: found[name] for name in row} == row


def test_hostile_texts_add_no_element_and_no_attribute(write_run, whole_run):
    """A page of hostile texts has the elements of a page of harmless ones, and no others."""
    page = page_of(hostile_run(write_run))
    found = Elements(page).found
    harmless = Elements(page_of(whole_run("tame", [{"prompt": "p", "completion": "c"}]))).found
    assert {tag for tag, _ in found} <= {tag for tag, _ in harmless} | {"pre", "use", "defs"}
    assert [tag for tag, _ in found].count("script") == 2
    assert [tag for tag, _ in found].count("style") == 1
    for _, attributes in found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert attributes.get("id") != "injected"
        link = attributes.get("href", "#")
        assert link.startswith("#")


def test_the_policy_lets_nothing_run_but_the_pages_own_script(write_run):
    page = page_of(hostile_run(write_run))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    script, = re.findall(r"<script>(.*?)</script>", page, re.S)
    style, = re.findall(r"<style>(.*?)</style>", page, re.S)
    for content, source in ((script, "script-src"), (style, "style-src")):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{source} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert "trusted-types 'none'" in policy
    assert not [text for text in HOSTILE if text in style]
    for sink in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert sink not in script


def test_a_page_of_two_runs_tells_what_differs(whole_run):
    paths = [
        whole_run("one", [{"prompt": "p", "completion": "c"}], {"seed": 0, "rl": {"steps": 3}}),
        whole_run("two", [{"prompt": "p", "completion": "d"}], {"seed": 0, "rl": {"steps": 4}},
                  shift=0.1),
    ]
    page = page_of(*paths)
    differ = page[page.index("What differs") : page.index("all settings")]
    assert "rl.steps" in differ and "seed" not in differ
    assert [row["run"] for row in rows_of(block_of(page))] == ["one", "two"]
    text = " ".join(Elements(page).text)
    assert "50.0" in text and "60.0" in text and "3.25" in text  # pass@1 of each, and a count
    assert "+10.0" in text and "+5.0 to +15.0" in text


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_without_completions_or_arms_still_has_a_page(write_run, finished):
    results = {"cells": [1, 2], "seconds": 3.0} if finished else None
    page = page_of(write_run("it", (), (), results, table="the study's own table"))
    text = " ".join(Elements(page).text)
    assert "the study's own table" in text
    assert ("Not finished: nothing logged yet" in text) != finished
    assert 'id="browser"' not in page and "rl.steps" in text


def test_an_unfinished_run_shows_its_curves(write_run):
    rows = [{"phase": "base", "step": step, "seed": seed, "loss": 1.0}
            for seed, steps in ((0, 5), (1, 3)) for step in range(steps)]
    page = page_of(write_run("it", (), [*rows, {"phase": "base"}, {"step": None, "loss": "?"}]))
    assert "Not finished" in page and page.count("<figure>") == 1


def test_of_too_many_completions_whole_problems_are_kept(write_run):
    rows = [{"prompt": f"p{i // 4}", "completion": f"c{i}"} for i in range(400)]
    record = read_record(write_run("it", rows))
    block = completions_block([record], [no_marks], {}, kept_lines([record], limit=100))
    data = json.loads(gzip.decompress(base64.b64decode(block.text)))
    assert (block.shown, block.total) == (100, 400)
    prompts = [row["prompt"] for row in rows_of(data)]
    assert all(prompts.count(prompt) == 4 for prompt in prompts)
    assert max(int(prompt[1:]) for prompt in prompts) > 90  # from all over the run
    page = page_of(record.path, limit=100)
    assert "The page holds 100 of 400 completions" in page


@pytest.mark.parametrize("name", ["countdown", "multiplication", "circuits", "paths"])
def test_marks_lay_every_step_over_the_text(name):
    task = make_task(name)
    problem = task.sample(0, 3)
    marks = step_marks(task, {task.prompt(problem): problem})
    trace = next(trace for s in task.strategies[::-1] if (trace := task.trace(problem, s)).steps)
    spaced = f"  oops {trace.completion.replace(' ', '  ')}\n"
    glued = trace.completion.replace(" ", "\ufffd ", 6)  # a tag in the middle of a text
    for text in (trace.completion, spaced, glued, "", "answer"):
        found, at, judged = marks(task.prompt(problem), text), 0, []
        for gap, length in zip(found[::2], found[1::2], strict=True):
            start, at = at + gap, at + gap + abs(length)
            judged.append((" ".join(text[start:at].split()), length > 0))
        assert judged == task.judge_steps(problem, parse_completion(text)[0])
    assert marks("another prompt", trace.completion) is None


def test_a_step_that_is_not_in_the_text_leaves_it_without_marks():
    class Task:
        def judge_steps(self, problem, steps):
            return [("a", True), ("not there", False)]

    assert step_marks(Task(), {"p": 0})("p", "a b c") is None


def test_a_judge_of_steps_that_fails_is_named():
    class Task:
        name = "mine"

        def judge_steps(self, problem, steps):
            return [1 / 0]

    with pytest.raises(ValueError, match="task='mine': judge_steps of 'a b': ZeroDivisionError"):
        step_marks(Task(), {"p": 0})("p", "a b")


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 0])
def test_the_first_problem_of_each_run_is_always_kept(write_run, limit):
    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(10)]
    records = [read_record(write_run(name, rows)) for name in ("one", "two")]
    kept = kept_lines(records, limit)
    for lines in kept:
        assert lines[:1] == ([0] if limit else [])
        assert len(lines) <= limit / 2 + 1
    assert kept_lines(records, 20) == [list(range(10))] * 2


@pytest.mark.parametrize(
    ("git", "told"),
    [("0123456789abcdef", "0123456789ab"), ("0123456789abcdef+changes", "0123456789ab+changes"),
     (None, "not told")],
)
def test_the_revision_says_whether_files_were_changed(write_run, git, told):
    path = write_run("it")
    about = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**about, "git": git}))
    assert f"<dt>revision</dt><dd>{told}</dd>" in page_of(path)


def two_seeds(*, tags):
    """Reinforcement by seed 3 and seed 5: what a step tells of each; reasons that some lack."""
    return [
        {"phase": "a", "step": step, "seed": seed, "reward": 0.5, "reasons/correct": share,
         **({"reasons/malformed": 1 - share} if step else {}), "tags/share": tags[seed]}
        for seed, share in ((3, 0.2), (5, 0.6)) for step in range(4)
    ]


def test_verdicts_are_means_over_seeds_and_of_reasons_that_some_steps_lack():
    rows = two_seeds(tags={3: [1], 5: [1]})
    panel, = figures.reward_panels({"run": rows}, {"correct": 0, "malformed": 1})
    ax, = panel.figure.axes
    correct, malformed = (area.get_paths()[0].vertices for area in ax.collections)
    assert set(correct[:, 0]) == {1, 2, 3, 4}
    assert max(correct[:, 1]) == pytest.approx(40)  # the mean of 20 and 60
    tops = {x: max(malformed[malformed[:, 0] == x][:, 1]) for x in (1, 2, 4)}
    assert tops == pytest.approx({1: 40, 2: 100, 4: 100})


def test_tags_are_those_of_the_first_seed():
    rows = two_seeds(tags={3: [0.25, 0.75], 5: [0.5, 0.5]})
    panel, = figures.tag_panels({"run": rows})
    assert panel.title == "a · seed 3, the first"
    assert [set(line.get_ydata()) for line in panel.figure.axes[0].lines] == [{25}, {75}]
    panel, = figures.tag_panels({"run": [row for row in rows if row["seed"] == 5]})
    assert panel.title == "a"
    assert [set(line.get_ydata()) for line in panel.figure.axes[0].lines] == [{50}] * 2


def test_scores_lie_beside_their_completion(write_run):
    rows = [{"prompt": "p", "completion": "a b", "tag": 0}] * 3
    scores = {(0, 1): TokenScores([0, 1, 3], [-0.25, -1.0, -math.inf], [0.5, 0.1, 0.0])}
    data = block_of(page_of(write_run("it", rows), scores=scores))
    assert data["scores"] == {"1": [[0, 1, 3], [-0.25, -1.0, -999.0], [0.5, 0.1, 0.0]]}


def test_figures_take_their_colours_from_the_page():
    styles = figures.Styles()
    rows = [{"phase": "a", "step": i, "seed": s, "loss": 1 + i} for i in range(4) for s in (0, 1)]
    panel, = figures.learning_panels({"run": rows}, {"a": 3})
    first, second = (figures.svg(panel.figure, styles) for _ in range(2))
    assert "var(--series-3)" in styles.css and "#5e5" not in styles.css + first
    assert "style" not in first and "<metadata" not in first
    ids = [set(re.findall(r'id="([^"]*)"', markup)) for markup in (first, second)]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="|url\()#([^")]*)', second))
    assert used and used <= ids[1]


def test_a_curve_is_the_mean_of_seeds_in_chunks():
    seeds = [[{"step": i, "x": float(i + s)} for i in range(200 - 100 * s)] for s in (0, 1)]
    steps, mean, least, most = figures._mean_curve(seeds, "x")
    assert steps.tolist() == [4 * i for i in range(1, 51)]
    assert mean[0] == 2.0 and (least[0], most[0]) == (1.5, 2.5)
    assert mean[-1] == least[-1] == most[-1] == 197.5  # the second seed has not come so far
