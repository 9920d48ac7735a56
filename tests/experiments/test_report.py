"""The report as a program: of a run with its policies, of damaged ones, and its refusals."""

import base64
import gzip
import json
import re
import shutil

import jax
import numpy as np
import pytest

from experiments import launch, report, report_benchmark, sources
from experiments.configs import smoke
from reasoning.data.tasks.base import distinct_problems
from reasoning.models.transformer import init_params
from reasoning.runtime.checkpoints import save_tree

ARMS = ("mixed", "matched_gfpo")


@pytest.fixture(autouse=True)
def no_kept_programs(monkeypatch):
    monkeypatch.setattr(launch, "keep_programs", lambda: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two arms and two seeds: policies as they began, and traces as completions."""
    path = tmp_path_factory.mktemp("runs") / "it"
    path.mkdir()
    config = smoke.get_config()
    config.evaluation.problems, config.evaluation.validation_problems = 3, 2
    task = sources.make_problems(config)
    text_format = sources.make_format(config, task)
    model = sources.make_model(config, text_format)
    sources.save_tokenizer(path, text_format)
    seeds = [init_params(model, jax.random.key(seed)) for seed in range(2)]
    for seed, params in enumerate(seeds):
        save_tree(path / "policies" / f"seed{seed}" / "mixed", params, {"phase": "mixed"})
    save_tree(path / "policies/seed0/matched_gfpo", seeds, {"phase": "matched_gfpo"})
    rows = [
        {"seed": seed, "arm": arm, "prompt": task.prompt(problem), "tag": tag,
         "completion": text, "correct": True, "reason": "correct", "validity": 1.0}
        for seed in range(2) for arm in (*ARMS, "lost")
        for problem in distinct_problems(task, "test", config.seed, 3)
        for tag, text in enumerate(task.completions(problem)[:2])
    ]
    rows.append({**rows[0], "step": 10, "prompt": "1 make 1 :"})
    about = {"program": "experiments.rl", "config": config.to_dict()}
    (path / "config.json").write_text(json.dumps(about))
    (path / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, rows


def written(page):
    """The data of a page, and the page."""
    text = page.read_text()
    block = re.search(r'id="data">([^<]*)<', text)[1]
    return json.loads(gzip.decompress(base64.b64decode(block))), text


def test_completions_are_judged_and_scored_by_their_own_policies(run, tmp_path, capsys):
    path, rows = run
    page = tmp_path / "page.html"
    report.main([f"--workdir={path}", f"--output={page}", "--scored=2"])
    assert str(page) in capsys.readouterr().out
    data, text = written(page)
    steps = data["columns"]["steps"]
    marks = [steps["values"][at] for at in steps["at"]]
    assert all(marks[:-1]) and marks[-1] is None  # the last prompt is none of the run's
    assert all(length > 0 for found in marks[:-1] for length in found[1::2])  # exact traces
    assert "1 of 4 problems are not those held out" in text
    first = list(dict.fromkeys(row["prompt"] for row in rows))[:2]
    expected = {str(i) for i, row in enumerate(rows[:-1])
                if row["prompt"] in first and row["arm"] in ARMS}
    assert set(data["scores"]) == expected
    assert "no policies/seed1/lost" in text.replace("holds ", "")
    # The two arms of a seed have the same policy here, two seeds have different ones.
    by_key = {(row["seed"], row["arm"], row["prompt"], row["tag"]): data["scores"].get(str(i))
              for i, row in enumerate(rows[:-1])}
    for seed in range(2):
        one, other = (by_key[seed, arm, first[0], 0][1] for arm in ARMS)
        np.testing.assert_allclose(one, other, atol=2e-3)
    assert by_key[0, "mixed", first[0], 0] != by_key[1, "mixed", first[0], 0]


def test_a_run_of_another_version_is_shown_without_colours(run, tmp_path):
    path, _ = run
    old = tmp_path / "old"
    old.mkdir()
    about = json.loads((path / "config.json").read_text())
    about["config"] = {"seed": 0, "task": {"name": "no such task"}}
    (old / "config.json").write_text(json.dumps(about))
    (old / "completions.jsonl").write_bytes((path / "completions.jsonl").read_bytes() + b'{"pro')
    data, text = written(report.report([str(old)], None, 1, 100))
    assert "Steps have no colours" in text and "No token scores for" in text
    assert data["scores"] == {} and data["rows"] > 0
    assert "1 damaged line left out" in text


def copy_of(run, folder, change):
    """A run with its policies, and a changed configuration."""
    path, _ = run
    shutil.copytree(path, folder)
    about = json.loads((path / "config.json").read_text())
    change(about["config"])
    (folder / "config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("part", ["task", "corpus"])
def test_code_that_a_run_names_is_imported_only_where_asked(run, tmp_path, part):
    victim = tmp_path / "victim"
    victim.write_text("still here")

    def change(config):
        config[part]["name"] = "os:remove"
        config["corpus"]["path"] = str(victim)

    named = copy_of(run, tmp_path / "named", change)
    data, text = written(report.report([str(named)], None, 1, 100))
    assert victim.read_text() == "still here"
    assert "the run names code of its own, os:remove; --own_code imports it." in text
    assert data["scores"] == {} and data["rows"] > 0
    assert data["columns"]["steps"]["values"] == [None]
    if part == "task":  # asked for, it is imported: it is no task
        _, text = written(report.report([str(named)], None, 1, 100, own_code=True))
        assert "Steps have no colours: " in text and "--own_code" not in text


def test_of_fewer_completions_those_that_are_kept_are_scored(run, tmp_path):
    path, rows = run
    page = tmp_path / "page.html"
    # The second problem of four is left out at first: the third is the second that is kept.
    report.main([f"--workdir={path}", f"--output={page}", "--scored=2", "--completions=20"])
    data, text = written(page)
    prompts = data["columns"]["prompt"]
    asked = [prompts["values"][at] for at in prompts["at"]]
    every = list(dict.fromkeys(row["prompt"] for row in rows))
    kept = list(dict.fromkeys(asked))
    assert kept[0] == every[0] and every[1] not in kept and len(kept) == 2
    scored = {asked[int(i)] for i in data["scores"]}
    assert scored == set(kept)
    assert f"for {len(data['scores'])} completions" in text


def test_a_device_that_fails_is_told(run, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nLargest buffers: ...")

    monkeypatch.setattr(report, "token_scores", fail)
    data, text = written(report.report([str(run[0])], str(tmp_path / "page.html"), 1, 100))
    assert "RESOURCE_EXHAUSTED: Out of memory." in text and "Largest buffers" not in text
    assert data["scores"] == {}


def test_a_large_model_is_used_only_where_asked(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LARGEST", 1000)
    page = str(tmp_path / "page.html")
    data, text = written(report.report([str(run[0])], page, None, 100))
    assert data["scores"] == {} and "parameters; --scored=N asks for them." in text
    assert written(report.report([str(run[0])], page, 1, 100))[0]["scores"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["page.html", "--repeats=0"], "repeats=0: must be 1 or more."),
        (["missing.html"], "missing.html: there is no such file."),
        (["page.html"], "page.html: is no page of experiments.report; name one that is."),
    ],
)
def test_refusals_of_the_benchmark(flags, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.html").write_text("<p>no report")
    with pytest.raises(SystemExit) as stopped:
        report_benchmark.main(flags)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_browser_that_does_not_start_is_told(tmp_path):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with pytest.raises(ValueError, match="/bin/false does not open it") as error:
        report_benchmark.opening_seconds(tmp_path / "page.html", "/bin/false")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--workdir=missing"], "workdir=missing: there is no such directory."),
        (["--workdir=."], "holds no config.json"),
        (["--workdir=missing", "--scored=-1"], "scored=-1: must be 0 or more."),
        (["--workdir=missing", "--completions=-1"], "completions=-1: must be 0 or more."),
    ],
)
def test_refusals(flags, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        report.main(flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert sentence in error and error.startswith("error: ") and error.count("\n") == 1


def test_an_arm_cannot_name_a_directory_outside_the_run(run):
    path, _ = run
    for arm in ("../../..", "/etc", ""):
        with pytest.raises(ValueError, match="holds no policies"):
            report.policy_folder(path, 0, 0, arm)
