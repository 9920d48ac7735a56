"""The page in headless Chromium: it loads without a word, filters and keys work, nothing runs.

Skipped where there is no Chromium or no playwright, which drives it: pip install -e '.[browser]'
and the system's package of Chromium (apt-get install chromium).
"""

import shutil

import pytest

from reasoning.data.tasks import make_task
from reasoning.evaluation.records import read_records
from reasoning.evaluation.report_completions import kept_lines, no_marks, step_marks
from reasoning.evaluation.report_html import View, make_page
from reasoning.evaluation.token_scores import TokenScores

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

TASK = make_task("countdown")
NUM_PROBLEMS = 60


def completions():
    """Each problem under two arms, two tags of the second, at a validation and at the end.

    Right under `mixed`; under `matched` a corrupted copy of the trace.
    """
    rows = []
    for index in range(NUM_PROBLEMS):
        problem = TASK.sample(0, index)
        text = TASK.completions(problem)[0]
        wrong = text.replace(" = ", " = 9", 1)
        for step in (10, None):
            for arm, tag, written in (
                ("mixed", 0, text), ("matched", 0, text), ("matched", 1, wrong)
            ):
                row = {"seed": 0, "arm": arm, "prompt": TASK.prompt(problem), "tag": tag,
                       "completion": written, "correct": written == text, "validity": 0.5,
                       "reason": "correct" if written == text else "wrong_equation",
                       "answer": "1", "strategy": None}
                rows.append(row if step is None else {**row, "step": step})
    return rows


@pytest.fixture(scope="module")
def browser():
    # The sandbox wants rights that a container may not have; the page is our own.
    with (
        playwright.sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        yield browser


@pytest.fixture
def open_page(browser, tmp_path):
    """`open_page(content)`: the page, loaded; at the end no word on the console and no request."""
    contexts, said = [], []

    def load(content, scheme="light", width=1200):
        file = tmp_path / "page.html"
        file.write_bytes(content)
        contexts.append(browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 800}
        ))
        contexts[-1].set_default_timeout(5_000)
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda asked: said.append(asked.url) if asked.url != file.as_uri()
                else None)
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready=yes]", timeout=20_000)
        return page

    yield load
    for context in contexts:
        context.close()
    assert said == []


def page_with(records, views, scores=None):
    return make_page(records, views, scores or {}, kept_lines(records, 10_000))


@pytest.fixture
def page_of(whole_run):
    def make(rows, names=("it",), scores=None):
        paths = [
            str(whole_run(name, rows, {"seed": i}, metrics=())) for i, name in enumerate(names)
        ]
        problems = {TASK.prompt(p): p for p in (TASK.sample(0, i) for i in range(NUM_PROBLEMS))}
        view = View(step_marks(TASK, problems), TASK.strategies)
        return page_with(read_records(paths), [view] * len(paths), scores)

    return make


def heads(page):
    return page.locator("#columns h3").all_inner_texts()


def test_the_page_shows_the_end_of_the_arm_of_most_tags_by_tag(open_page, page_of):
    page = open_page(page_of(completions()))
    assert page.inner_text("#count") == "120 of 360, 60 problems"
    assert heads(page) == ["tag 0 1 of 1 right", "tag 1 0 of 1 right"]
    assert page.inner_text("#asked").startswith(TASK.prompt(TASK.sample(0, 0)))
    wrong = page.locator("#columns > div").nth(1)
    assert "wrong_equation" in wrong.inner_text()
    assert wrong.locator(".step.invalid").count() >= 1
    assert page.locator("#columns > div").nth(0).locator(".step.invalid").count() == 0
    # The lines of a trace are its text.
    lines = page.locator("#columns > div").nth(0).locator(".step").all_inner_texts()
    first = completions()[0]["completion"]
    assert " ".join(" ".join(lines).split()) == first


def test_filters_and_search_choose_completions(open_page, page_of):
    page = open_page(page_of(completions()))
    page.get_by_label("arm", exact=True).select_option(label="all")
    assert page.inner_text("#count") == "180 of 360, 60 problems"
    page.get_by_label("step", exact=True).select_option(label="all")
    assert page.inner_text("#count") == "360 of 360, 60 problems"
    page.get_by_label("verdict", exact=True).select_option("wrong")
    assert page.inner_text("#count") == "120 of 360, 60 problems"
    page.get_by_label("columns", exact=True).select_option("step")
    assert [head.split(" 0 of")[0] for head in heads(page)] == ["10", "final"]
    text = completions()[-1]["completion"]
    page.fill("#search", text)
    alike = sum(row["completion"] == text for row in completions())
    assert page.inner_text("#count").startswith(f"{alike} of 360")
    page.fill("#search", "no completion says this")
    assert page.inner_text("#asked") == "No completion matches."
    page.get_by_label("order", exact=True).focus()
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    assert page.inner_text("#count") == "120 of 360, 60 problems"


def test_everything_is_done_by_keys(open_page, page_of):
    page = open_page(page_of(completions()))
    prompts = [TASK.prompt(TASK.sample(0, i)) for i in range(NUM_PROBLEMS)]

    def asked():
        return page.inner_text("#asked").splitlines()[0]

    for key in ("j", "j", "k"):
        page.keyboard.press(key)
    assert asked().startswith(prompts[1])
    page.focus("#problems")
    page.keyboard.press("ArrowDown")
    assert asked().startswith(prompts[2])
    for _ in range(NUM_PROBLEMS):
        page.keyboard.press("j")
    assert asked().startswith(prompts[-1])  # the last in sight, though few are elements
    assert page.locator(".problem[aria-selected=true]").is_visible()
    assert page.locator(".problem").count() < NUM_PROBLEMS
    page.keyboard.press("[")
    assert "120 of 360" in page.inner_text("#count")  # of the validation
    page.keyboard.press("a")
    page.keyboard.press("v")
    assert page.get_by_label("verdict", exact=True).input_value() == "right"
    page.keyboard.press("/")
    page.keyboard.type("jkv?")
    assert page.input_value("#search") == "jkv?"  # letters there are letters
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("2")
    assert page.url.endswith("#results")


def test_tokens_are_shaded_and_the_fork_is_marked(open_page, page_of):
    text = completions()[0]["completion"]
    words = text.split(" ")
    ends = [0]  # of the tag
    for word in words:
        ends.append(ends[-1] + len(word) + (ends[-1] > 0))
    ends.append(ends[-1])
    log_probs = [-1.5, *[-0.001] * (len(words) - 1), -3.0, -0.001]
    entropies = [1.25, 0.7, *[0.01] * (len(words) - 1), 0.9]  # the last is <eos>: not drawn
    rows = completions()
    line = next(i for i, row in enumerate(rows) if row["arm"] == "matched" and "step" not in row)
    scores = {(0, line): TokenScores(ends, log_probs, entropies)}
    page = open_page(page_of(rows, scores=scores))
    fork = page.locator(".fork")
    assert fork.inner_text() == "fork: tag 0 p 0.22 H 1.25"
    assert "level-4" in fork.get_attribute("class")
    tokens = page.locator("#columns .token:not(.fork)")
    assert "".join(tokens.all_text_contents()).replace(" ", "") == text.replace(" ", "")
    assert page.locator("#columns .level-5").all_text_contents() == [f" {words[-1]}"]
    assert page.locator("#columns .peak").all_text_contents() == [words[0]]
    page.keyboard.press("s")  # entropy
    assert page.locator("#columns .level-5").count() == 0
    page.keyboard.press("s")  # none
    assert page.locator("#columns .token").count() == 0


def test_both_themes_follow_the_system_and_the_key(open_page, page_of):
    content = page_of(completions()[:6])

    def paper(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = (paper(open_page(content, scheme)) for scheme in ("light", "dark"))
    assert light != dark
    page = open_page(content, "dark")
    page.keyboard.press("t")
    assert paper(page) == light
    page.keyboard.press("t")
    assert paper(page) == dark
    page.emulate_media(media="print")
    assert paper(page) == light  # paper is white
    assert not page.locator("nav").is_visible()
    assert page.locator(".trace").first.is_visible()


def test_two_runs_stand_side_by_side(open_page, page_of):
    page = open_page(page_of(completions(), names=("one", "two")))
    assert [head.split()[0] for head in heads(page)] == ["one", "two"]
    assert page.inner_text("#count") == "240 of 720, 60 problems"


def test_two_runs_of_other_arms_and_seeds_are_both_shown(open_page, write_run):
    rows = completions()
    runs = [write_run(arm, [{**row, "seed": seed} for row in rows if row["arm"] == arm])
            for seed, arm in enumerate(("mixed", "matched"))]
    records = read_records([str(run) for run in runs])
    page = open_page(page_with(records, [View(no_marks)] * 2))
    assert [head.split()[0] for head in heads(page)] == ["mixed", "matched"]
    assert page.get_by_label("arm", exact=True).input_value() == "all"
    assert page.get_by_label("seed", exact=True).input_value() == "all"
    assert page.inner_text("#count") == "180 of 360, 60 problems"


def test_several_seeds_are_not_mixed_under_a_tag(open_page, page_of):
    page = open_page(page_of([{**row, "seed": seed} for seed in (3, 5) for row in completions()]))
    assert page.inner_text("#count") == "120 of 720, 60 problems"  # of the first seed
    assert heads(page) == ["tag 0 1 of 1 right", "tag 1 0 of 1 right"]
    page.get_by_label("seed", exact=True).select_option(label="all")
    first = page.locator("#columns > div").nth(0).locator("article")
    assert first.count() == 2  # equal texts of two seeds
    for seed in range(2):
        assert f"seed {3 + 2 * seed}" in first.nth(seed).inner_text()


def test_a_browser_that_cannot_unpack_says_so(browser, page_of):
    context = browser.new_context()
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    page.set_content(page_of(completions()[:6]).decode())
    page.wait_for_selector("html[data-ready=yes]", timeout=20_000)
    assert page.inner_text("#count").startswith("This browser cannot unpack the completions")
    context.close()


def test_a_narrow_window_does_not_scroll_sideways(open_page, page_of):
    page = open_page(page_of(completions()), width=400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_hostile_text_is_shown_and_does_not_run(open_page, write_run):
    from test_report_html import HOSTILE, hostile_run

    record, = read_records([str(hostile_run(write_run))])
    page = open_page(page_with([record], [View(no_marks, HOSTILE[:2], HOSTILE)]))
    seen = []
    for _ in HOSTILE:
        seen.append(page.locator("#columns .step").first.text_content())
        page.keyboard.press("j")
    assert seen == [f"{text} {text}" for text in HOSTILE]
    for name in ("arm", "tag", "reason", "strategy", "__proto__", "columns"):
        select = page.get_by_label(name, exact=True).first
        for option in range(select.locator("option").count()):
            select.select_option(index=option)
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.locator("#injected").count() == 0
    assert page.locator("script").count() == 2 and page.locator("img").count() == 0


def test_the_policy_stops_a_script_that_got_in(open_page, page_of, browser):
    """The second line of defence, tried by itself: markup that was let in does nothing."""
    content = page_of(completions()[:6])
    attack = b"<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    context = browser.new_context()
    page = context.new_page()
    page.set_content((content.replace(b"<main>", b"<main>" + attack)).decode())
    page.wait_for_selector("html[data-ready=yes]", timeout=20_000)
    assert page.evaluate("window.hacked") is None
    with pytest.raises(playwright.Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    context.close()
