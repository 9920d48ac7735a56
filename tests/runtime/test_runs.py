"""The run directory: finished runs are left alone, unfinished ones go on, others are refused."""

import contextlib
import dataclasses
import errno
import hashlib
import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.runtime import provenance, runs
from reasoning.runtime.directory import finished_results
from reasoning.runtime.progress import Progress, announced
from reasoning.runtime.provenance import fingerprint, first_difference
from reasoning.runtime.runs import Run, Saving

PROGRAM = "experiments.sft"
CONFIG = {"seed": 0, "model": {"preset": "0.1m", "d_model": 64}, "rates": (1e-3, 3e-4)}
ALWAYS, SELDOM = Saving(every=0.0), Saving(every=1e9)
PREVIOUS = Saving(every=0.0, use_previous=True)


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    """Not the revision of the checkout that the tests run in."""
    monkeypatch.setattr(runs, "git_revision", lambda: "abc+changes")


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "runs" / "first"


def snapshot(path):
    """Every file's bytes and time, every directory's name."""
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns)
        if file.is_file() else None
        for file in path.rglob("*")
    }


def finished_run(workdir, results):
    with Run(workdir, PROGRAM, CONFIG) as run:
        run.log_metrics("base", 0, {"loss": 1.5})
        run.finish(results)


def unfinished_run(workdir, loss):
    with Run(workdir, PROGRAM, CONFIG) as run:
        run.log_metrics("base", 0, {"loss": loss})


def test_a_new_directory_is_made_and_described(workdir):
    assert finished_results(workdir, PROGRAM, CONFIG) is None
    assert not workdir.exists()  # asking writes nothing
    with Run(workdir, PROGRAM, CONFIG) as run:
        assert run.path == workdir and run.seconds >= 0
        assert {path.name for path in workdir.iterdir()} == {
            "config.json", "attempts.jsonl", "metrics.jsonl", "completions.jsonl", "plots",
            "checkpoints", "events", ".lock",
        }
    about = json.loads((workdir / "config.json").read_text())
    assert about["config"] == json.loads(json.dumps(CONFIG))
    assert about["git"] == "abc+changes" and isinstance(about["command"], list)
    assert {"reasoning", "python", "jax", "numpy", "device"} <= set(about["versions"])


def test_code_of_ones_own_is_recorded_and_its_change_told(tmp_path, workdir, monkeypatch, capsys):
    file = tmp_path / "code_of_mine.py"
    file.write_text("def gcd(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "code_of_mine", importlib.import_module("code_of_mine"))
    config = {"task": {"name": "code_of_mine:gcd", "rules": ("a:b",)}, "form": "Question: why?"}
    sha = hashlib.sha256(b"def gcd(): ...\n").hexdigest()
    for attempt in range(3):
        with Run(workdir, PROGRAM, config) as run:
            run.log_metrics("base", 0, {"loss": 1.5})
        told = capsys.readouterr().out
        changed = f"{file} has changed since this run began"
        assert (changed in told) == (attempt == 2) and told.count("\n") == (attempt == 2)
        if attempt == 1:
            file.write_text("def gcd(): return 1\n")
    about = json.loads((workdir / "config.json").read_text())
    assert about["code"] == {"code_of_mine": {"file": str(file), "sha256": sha}}
    rows = [json.loads(row) for row in (workdir / "attempts.jsonl").read_text().splitlines()]
    assert [row["code"]["code_of_mine"]["sha256"] == sha for row in rows] == [True, True, False]


def test_an_empty_directory_is_as_good_as_none(workdir):
    workdir.mkdir(parents=True)
    assert finished_results(workdir, PROGRAM, CONFIG) is None


def test_a_finished_run_is_returned_and_unchanged(workdir):
    finished_run(workdir, {"pass@1": np.float32(0.5), "curve": jnp.arange(3)})
    before = snapshot(workdir)
    results = finished_results(workdir, PROGRAM, CONFIG)
    assert results["pass@1"] == 0.5 and results["curve"] == [0, 1, 2]
    assert results["seconds"] >= 0 and "jax" in results["versions"]
    assert snapshot(workdir) == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "changes, difference",
    [
        (dict(seed=1), "seed is 0 there and 1 here"),
        (dict(model={"preset": "0.1m", "d_model": 32}, seed=7),
         "model.d_model is 64 there and 32 here"),
        (dict(rates=(1e-3, 1e-4)), r"rates is [0.001, 0.0003] there and [0.001, 0.0001] here"),
        (dict(arm="mixed"), "arm is absent there and 'mixed' here"),
    ],
    ids=str,
)
def test_another_configuration_is_refused_and_harms_nothing(
    workdir, finished, changes, difference
):
    if finished:
        finished_run(workdir, {"pass@1": 0.5})
    else:
        unfinished_run(workdir, 1.5)
    before = snapshot(workdir)
    with pytest.raises(ValueError) as error:
        finished_results(workdir, PROGRAM, {**CONFIG, **changes})
    assert str(error.value) == (
        f"workdir={workdir}: holds a run of another configuration ({difference}); "
        "choose another directory."
    )
    assert snapshot(workdir) == before


def test_the_mesh_may_be_another_one(workdir):
    one, many = ({**CONFIG, "mesh": {"fsdp": n}} for n in (1, 8))
    with Run(workdir, PROGRAM, one) as run:
        run.log_metrics("base", 0, {"loss": 1.5})
    with Run(workdir, PROGRAM, many) as run:
        run.finish({"pass@1": 0.5})
    assert finished_results(workdir, PROGRAM, one)["pass@1"] == 0.5


def test_first_difference_goes_by_name():
    assert first_difference(CONFIG, dict(reversed(CONFIG.items()))) is None
    assert first_difference({"b": 1, "a": {"d": 1, "c": 2}}, {"b": 2, "a": {"d": 0, "c": 3}}) == (
        "a.c is 2 there and 3 here"
    )
    assert first_difference({"a": {"b": 1}}, {"a": 1}) == "a is {'b': 1} there and 1 here"


@pytest.mark.parametrize("name, content", [
    ("notes.txt", "mine"), ("config.json", "{"), ("config.json", '{"learning_rate": 1}'),
    ("config.json", "[]"), ("config.json", '{"program": "experiments.sft", "config": 3}'),
    ("config.json", '{"config": {}}'), ("config.json", b"\xff"),
])
def test_a_directory_of_something_else_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = snapshot(tmp_path)
    for attempt in (finished_results, Run):
        with pytest.raises(ValueError) as error:
            attempt(tmp_path, PROGRAM, CONFIG)
        assert str(tmp_path) in str(error.value) and "choose another" in str(error.value)
        assert "\n" not in str(error.value)
    assert snapshot(tmp_path) == before  # not even a lock file


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_damaged_results_are_named_and_left(workdir, content):
    finished_run(workdir, {"pass@1": 0.5})
    (workdir / "results.json").write_text(content)
    before = snapshot(workdir)
    for attempt in (finished_results, Run):
        with pytest.raises(ValueError, match=r"results\.json: is damaged"):
            attempt(workdir, PROGRAM, CONFIG)
    assert snapshot(workdir) == before


def test_another_programs_run_is_refused(workdir):
    unfinished_run(workdir, 1.0)
    with pytest.raises(ValueError, match=r"a run of experiments\.sft, not of experiments\.rl;"):
        finished_results(workdir, "experiments.rl", CONFIG)


def test_a_finished_run_cannot_be_opened(workdir):
    finished_run(workdir, {"pass@1": 0.5})
    before = snapshot(workdir)
    with pytest.raises(ValueError, match="has finished"):
        Run(workdir, PROGRAM, CONFIG)
    assert snapshot(workdir) == before


HOLD = """
import sys
from reasoning.runtime import provenance, runs
from reasoning.runtime.progress import Progress
from reasoning.runtime.provenance import fingerprint, first_difference
runs.git_revision = lambda: None
with runs.Run(sys.argv[1], "experiments.sft", {"seed": 0}):
    print("open", flush=True)
    sys.stdin.read()
print("closed", flush=True)
"""


@contextlib.contextmanager
def another_process(workdir):
    """A process that holds the run open until its stdin is closed, or it is killed."""
    command = [sys.executable, "-c", HOLD, str(workdir)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "open\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def refused_as_being_written(workdir, config):
    before = snapshot(workdir)
    with pytest.raises(ValueError) as error:
        Run(workdir, PROGRAM, config)
    assert str(error.value) == (
        f"workdir={workdir}: another process is writing this run; wait for it or choose another "
        "directory."
    )
    assert snapshot(workdir) == before


@pytest.mark.parametrize("killed", [True, False])
def test_one_process_writes_a_run(workdir, killed):
    with another_process(workdir) as holder:
        refused_as_being_written(workdir, {"seed": 0})
        if killed:
            holder.kill()
        out, _ = holder.communicate()
        assert (out, holder.returncode) == (("", -9) if killed else ("closed\n", 0))
    with Run(workdir, PROGRAM, {"seed": 0}):  # neither a killed nor an ended one holds the lock
        assert len((workdir / "attempts.jsonl").read_text().splitlines()) == 2


def test_one_process_opens_a_run_once(workdir):
    with Run(workdir, PROGRAM, CONFIG) as run:
        refused_as_being_written(workdir, CONFIG)
        run.finish({"pass@1": 0.5})  # the one that was refused has not taken the lock away
    assert finished_results(workdir, PROGRAM, CONFIG)["pass@1"] == 0.5


@pytest.mark.parametrize("theirs, finished, message", [
    (CONFIG, True, "this run has finished"),
    ({**CONFIG, "seed": 1}, False, "another configuration (seed is 1 there and 0 here)"),
])
def test_a_run_that_came_just_before_the_lock_is_left_alone(
    workdir, monkeypatch, theirs, finished, message
):
    lock, before = runs.lock, {}

    def late(path):
        monkeypatch.setattr(runs, "lock", lock)
        with Run(path, PROGRAM, theirs) as run:
            if finished:
                run.finish({"pass@1": 0.5})
        before.update(snapshot(path))
        return lock(path)

    monkeypatch.setattr(runs, "lock", late)
    with pytest.raises(ValueError) as error:
        Run(workdir, PROGRAM, CONFIG)
    assert message in str(error.value)
    assert snapshot(workdir) == before
    lock(workdir).close()  # and the lock is free


def test_a_bucket_is_refused_and_no_directory_of_that_name_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"workdir=gs://bucket/run: a run needs a file system"):
        Run("gs://bucket/run", PROGRAM, CONFIG)
    assert not list(tmp_path.iterdir())


def test_a_file_is_refused(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match=r": is a file; choose a directory\.$"):
        finished_results(tmp_path / "notes", PROGRAM, CONFIG)


class Killed(BaseException):
    """Stands for the end of the process."""


@jax.jit
def advance(state, step):
    return jax.tree.map(lambda x: 1.5 * x + step, state)


def train(run, name, last_step=None, start=1.0, asked=None):
    """A phase of 6 steps, each logged; the process ends after `last_step`, or is `asked` to."""

    def work():
        state, done, carried = run.resume({"w": jnp.full(3, start)}, {"total": 0.0})
        for step in range(done, 6):
            state = advance(state, step)
            carried["total"] += float(state["w"][0])
            run.log_metrics(name, step, {"w": state["w"]})
            run.log_completions([{"phase": name, "step": step}])
            if asked:
                signal.raise_signal(asked)
            if run.due():
                run.save(step + 1, state, carried)
            if step == last_step:
                raise Killed
        return state, carried

    return run.phase(name, work, like={"w": jnp.zeros(3)})


def complete(workdir, saving=ALWAYS):
    """Both phases of a run, from wherever it stands."""
    with Run(workdir, PROGRAM, CONFIG, "data", saving) as run:
        first, spent = train(run, "seed0/base")
        second, more = train(run, "seed0/mixed", start=float(first["w"][0]))
        run.finish({"w": second["w"], "total": spent["total"] + more["total"]})


def kept(workdir):
    results = finished_results(workdir, PROGRAM, CONFIG)
    logs = [(workdir / name).read_text() for name in ("metrics.jsonl", "completions.jsonl")]
    return results["w"], results["total"], *logs


@pytest.mark.parametrize("saving", [ALWAYS, SELDOM], ids=["saved at every step", "never saved"])
@pytest.mark.parametrize("phase", ["seed0/base", "seed0/mixed"])
@pytest.mark.parametrize("last_step", [0, 3, 5])
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(
    tmp_path, workdir, saving, phase, last_step
):
    complete(tmp_path / "alone")
    with pytest.raises(Killed), Run(workdir, PROGRAM, CONFIG, "data", saving) as run:
        first, _ = train(run, "seed0/base", last_step if phase == "seed0/base" else None)
        train(run, "seed0/mixed", last_step, start=float(first["w"][0]))
    assert finished_results(workdir, PROGRAM, CONFIG) is None
    complete(workdir, saving)
    assert kept(workdir) == kept(tmp_path / "alone")
    assert len((workdir / "attempts.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step(tmp_path, workdir, capsys, number):
    complete(tmp_path / "alone")
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped, Run(workdir, PROGRAM, CONFIG, "data") as run:
        train(run, "seed0/base", asked=number)
    assert stopped.value.code == runs.STOPPED and signal.getsignal(number) is before
    said = capsys.readouterr().out
    assert f"stopped by {number.name} after step 1 of seed0/base, saved in " in said
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 1
    complete(workdir)
    assert "seed0/base: goes on after step 1." in capsys.readouterr().out
    assert kept(workdir) == kept(tmp_path / "alone")


def test_the_clock_stops_a_run_too(workdir, capsys):
    with (
        pytest.raises(SystemExit) as stopped,
        Run(workdir, PROGRAM, CONFIG, "data", Saving(max_minutes=0.0)) as run,
    ):
        train(run, "seed0/base")
    assert stopped.value.code == runs.STOPPED
    assert "stopped by max_minutes=0 after step 1" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_phases_stops_there_and_a_second_one_at_once(
    tmp_path, workdir, capsys, number
):
    complete(tmp_path / "alone")
    with pytest.raises(SystemExit) as stopped, Run(workdir, PROGRAM, CONFIG, "data") as run:
        train(run, "seed0/base")
        signal.raise_signal(number)
        assert {signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)} == {signal.SIG_DFL}
        run.phase("seed0/mixed", lambda: pytest.fail("it goes on"))
    assert stopped.value.code == runs.STOPPED
    assert f"stopped by {number.name}; the same command goes on." in capsys.readouterr().out
    complete(workdir)
    assert kept(workdir) == kept(tmp_path / "alone")


def test_the_clock_stops_between_phases_once_one_was_ended(workdir):
    ended = []
    for count in (1, 2, 3):
        with (
            contextlib.suppress(SystemExit),
            Run(workdir, PROGRAM, CONFIG, "data", Saving(max_minutes=0.0)) as run,
        ):
            for name in "abc":
                run.phase(name, lambda name=name: (None, ended.append(name)))
        assert ended == list("abc")[:count]


def test_other_data_are_refused(workdir):
    with Run(workdir, PROGRAM, CONFIG, "data"):
        pass
    before = snapshot(workdir)
    with pytest.raises(ValueError, match=r"other data \(fingerprint data there and more here\)"):
        Run(workdir, PROGRAM, CONFIG, "more")
    assert snapshot(workdir) == before


def stopped_run(workdir):
    """A run that was killed after three steps of its first phase, all saved."""
    with pytest.raises(Killed), Run(workdir, PROGRAM, CONFIG, "data", ALWAYS) as run:
        train(run, "seed0/base", last_step=2)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_used_if_asked(
    tmp_path, workdir, capsys
):
    complete(tmp_path / "alone")
    stopped_run(workdir)
    last = max(int(path.name) for path in (workdir / "checkpoints").iterdir()
               if path.name.isdecimal())
    damaged = next((workdir / "checkpoints" / str(last) / "state").rglob("manifest.ocdbt"))
    damaged.write_bytes(b"")
    before = snapshot(workdir / "checkpoints")
    with pytest.raises(ValueError, match=r"its content is not .* --use_previous_checkpoint\."):
        Run(workdir, PROGRAM, CONFIG, "data", ALWAYS)
    assert snapshot(workdir / "checkpoints") == before
    complete(workdir, PREVIOUS)
    assert "seed0/base: goes on after step 2." in capsys.readouterr().out
    assert kept(workdir) == kept(tmp_path / "alone")


def damage(step):
    next((step / "state").rglob("manifest.ocdbt")).write_bytes(b"")


def refused_and_unchanged(workdir, saving, match):
    """A start that is refused leaves checkpoints and logs as they are."""
    names = ("checkpoints", "metrics.jsonl", "completions.jsonl")
    before = {str(path): content for path, content in snapshot(workdir).items()
              if path.startswith(names)}
    with pytest.raises(ValueError, match=match):
        Run(workdir, PROGRAM, CONFIG, "data", saving)
    assert before == {path: content for path, content in snapshot(workdir).items()
                      if path.startswith(names)}


def test_where_every_checkpoint_is_damaged_nothing_is_started_again(workdir):
    stopped_run(workdir)
    for name in ("1", "2"):
        damage(workdir / "checkpoints" / name)
    for _ in range(2):
        refused_and_unchanged(workdir, PREVIOUS, "holds no step before that is whole")


@pytest.mark.parametrize("lost", ["checkpoints", "checkpoints/latest.json", "every step"])
def test_lost_checkpoints_are_no_fresh_start(workdir, lost):
    stopped_run(workdir)
    if lost == "every step":
        for name in ("1", "2"):
            shutil.rmtree(workdir / "checkpoints" / name)
    elif lost == "checkpoints":
        shutil.rmtree(workdir / lost)
    else:
        (workdir / lost).unlink()
    refused_and_unchanged(workdir, ALWAYS, r"(cannot be read|is missing).* --use_previous_checkp")
    if lost == "checkpoints/latest.json":
        complete(workdir, PREVIOUS)
    else:
        refused_and_unchanged(workdir, PREVIOUS, "holds no step before that is whole")


def test_a_run_that_was_killed_before_its_first_save_starts_again(workdir):
    unfinished_run(workdir, 1.5)
    with Run(workdir, PROGRAM, CONFIG) as run:
        assert run.resume(None, {}) == (None, 0, {})


@pytest.mark.parametrize("content", ["", '{"sTep": 3}', "[1]", '{"step": "3"}'])
def test_a_damaged_name_of_the_last_checkpoint_is_one_sentence(workdir, capsys, content):
    stopped_run(workdir)
    (workdir / "checkpoints" / "latest.json").write_text(content)
    refused_and_unchanged(workdir, ALWAYS, r"latest\.json: cannot be read .* --use_previous_ch")
    complete(workdir, PREVIOUS)
    assert "seed0/base: goes on after step 3." in capsys.readouterr().out


def test_a_log_that_is_too_short_is_refused(workdir):
    stopped_run(workdir)
    (workdir / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: is shorter than when"):
        Run(workdir, PROGRAM, CONFIG, "data", ALWAYS)


def killed(*_):
    raise KeyboardInterrupt


def test_a_run_killed_while_it_is_described_can_be_started(workdir, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            Run(workdir, PROGRAM, CONFIG)
    assert {path.name for path in workdir.iterdir()} == {".lock", ".config.json.partial"}
    assert finished_results(workdir, PROGRAM, CONFIG) is None
    finished_run(workdir, {"pass@1": 0.5})
    assert not (workdir / ".config.json.partial").exists()


def test_results_are_written_whole_or_not_at_all(workdir, monkeypatch):
    with Run(workdir, PROGRAM, CONFIG) as run:
        # Only a file that is complete gets the name that marks the run as finished.
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                run.finish({"pass@1": 0.5})
        assert not (workdir / "results.json").exists()
        assert finished_results(workdir, PROGRAM, CONFIG) is None
        run.finish({"pass@1": 0.5})
    assert finished_results(workdir, PROGRAM, CONFIG)["pass@1"] == 0.5
    assert not [path for path in workdir.rglob("*") if "partial" in path.name]


def test_every_line_of_metrics_and_completions_is_there_at_once(workdir):
    with Run(workdir, PROGRAM, CONFIG) as run:
        run.log_metrics("base", 0, {"loss": jnp.float32(0.5), "tag_usage": jnp.array([0.25, 0.75])})
        run.log_metrics("base", 1, {"loss": np.float64(0.25), "tokens": 12})
        run.log_completions({"prompt": text, "correct": True} for text in ("a\nb", "é"))
        lines = (workdir / "metrics.jsonl").read_text().splitlines()  # before it is closed
        assert [json.loads(line) for line in lines] == [
            {"phase": "base", "step": 0, "loss": 0.5, "tag_usage": [0.25, 0.75]},
            {"phase": "base", "step": 1, "loss": 0.25, "tokens": 12},
        ]
        lines = (workdir / "completions.jsonl").read_text().splitlines()
        assert [json.loads(line)["prompt"] for line in lines] == ["a\nb", "é"]


def test_an_error_closes_the_files_and_leaves_the_run_unfinished(workdir):
    with pytest.raises(KeyboardInterrupt), Run(workdir, PROGRAM, CONFIG) as run:
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="closed file"):
        run.log_metrics("base", 0, {})
    assert finished_results(workdir, PROGRAM, CONFIG) is None


def test_a_fingerprint_is_of_every_value():
    @dataclasses.dataclass
    class Data:
        prompts: np.ndarray
        names: list

    data = Data(np.arange(6).reshape(2, 3), ["a", ("b", 1)])
    same = Data(np.arange(6).reshape(2, 3), ["a", ("b", 1)])
    assert fingerprint(data) == fingerprint(same)
    others = [
        Data(np.arange(6).reshape(3, 2), data.names),
        Data(data.prompts.astype(np.int32), data.names),
        Data(data.prompts + 1, data.names),
        Data(data.prompts, ["a", ("b", 2)]),
        Data(data.prompts, ["a", "b", 1]),
        Data(data.prompts, {"a": "b"}),
    ]
    assert len({fingerprint(item) for item in [data, *others]}) == 1 + len(others)


def test_git_revision_is_none_without_git(monkeypatch):
    monkeypatch.undo()

    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert provenance.git_revision() is None


# Damaged policies


def damaged_policy(workdir, phase):
    """A run that was killed in its second phase, after the policy of one was damaged."""
    with pytest.raises(Killed), Run(workdir, PROGRAM, CONFIG, "data", ALWAYS) as run:
        first, _ = train(run, "seed0/base")
        if phase == "seed0/mixed":
            train(run, phase, start=float(first["w"][0]))
        raise Killed
    damage(workdir / "policies" / phase / "0")


@pytest.mark.parametrize("phase", ["seed0/base", "seed0/mixed"])
def test_a_damaged_policy_is_made_again_from_its_last_checkpoint_if_asked(
    tmp_path, workdir, capsys, phase
):
    complete(tmp_path / "alone")
    damaged_policy(workdir, phase)
    marks = snapshot(workdir / "finished")
    with pytest.raises(ValueError, match=r"policies/seed0/.*copy, or .* --use_previous_checkpoint"):
        complete(workdir)
    assert snapshot(workdir / "finished") == marks
    complete(workdir, PREVIOUS)
    assert f"{phase}: goes on after step 6." in capsys.readouterr().out
    assert kept(workdir) == kept(tmp_path / "alone")


def test_a_damaged_policy_that_no_checkpoint_holds_is_refused(workdir):
    damaged_policy(workdir, "seed0/mixed")
    shutil.rmtree(workdir / "policies" / "seed0" / "base")
    for saving in (ALWAYS, PREVIOUS):
        before = snapshot(workdir / "finished")
        with pytest.raises(ValueError, match=r"choose another workdir: .* is left\.$"):
            complete(workdir, saving)
        assert snapshot(workdir / "finished") == before


def test_a_phase_has_ended_only_when_its_last_checkpoint_is_there(workdir):
    with Run(workdir, PROGRAM, CONFIG) as run:

        def work():
            run.save(1, {"w": jnp.ones(3)}, {})
            return {"w": jnp.ones(3)}, {}

        run.phase("base", work, like={"w": jnp.ones(3)}, steps=1)
        named = json.loads((workdir / "checkpoints" / "latest.json").read_text())
        assert named == {"step": 0} and (workdir / "finished" / "base.json").is_file()


# Extension


def configuration(steps, rl=6):
    """Steps of a phase, and of others that nothing trains."""
    return {"seed": 0, "pretrain": {"steps": 0}, "finetune": {"steps": steps}, "rl": {"steps": rl}}


def train_to(workdir, steps, extend=False, phases=("seed0/base", "seed0/mixed"), rl=6):
    """Phases of so many steps each, the last one's number from `steps`, then a result."""
    config = configuration(steps, rl)
    with Run(workdir, PROGRAM, config, "data", Saving(extend=extend)) as run:
        for name in phases:
            total = steps if name == phases[-1] else 3

            def work(name=name, total=total):
                state, done, carried = run.resume({"w": jnp.ones(3)}, {"seen": []})
                for step in range(done, total):
                    state = advance(state, step)
                    run.log_metrics(name, step, {"w": state["w"]})
                    carried["seen"].append(step)
                run.save(total, state, carried)
                return state, carried

            params, spent = run.phase(name, work, like={"w": jnp.zeros(3)}, steps=total)

        def evaluate():
            run.log_completions([{"w": params["w"]}])
            return None, {"w": params["w"].tolist()}

        run.finish(run.phase("seed0/results", evaluate)[1] | spent)
    return config


def test_an_extended_run_is_the_longer_run(tmp_path, workdir):
    short = train_to(workdir, 4)
    assert finished_results(workdir, PROGRAM, short)["steps"] == 3 + 4
    before = snapshot(workdir)
    long = configuration(6)
    with pytest.raises(ValueError, match=r"finetune\.steps is 4 there and 6 here"):
        finished_results(workdir, PROGRAM, long)
    assert finished_results(workdir, PROGRAM, long, extend=True) is None
    assert snapshot(workdir) == before
    train_to(workdir, 6, extend=True)
    train_to(tmp_path / "alone", 6)
    results = [finished_results(path, PROGRAM, long) for path in (workdir, tmp_path / "alone")]
    for name in ("w", "seen", "steps"):
        assert results[0][name] == results[1][name]
    for name in ("metrics.jsonl", "completions.jsonl"):
        assert (workdir / name).read_text() == (tmp_path / "alone" / name).read_text()
    (old,) = workdir.glob("before_extension_*.json")
    assert json.loads(old.read_text())["steps"] == 7


@pytest.mark.parametrize("config", [
    {"finetune": {"steps": 3}}, {"seed": 1, "finetune": {"steps": 6}},
    {"finetune": {"steps": 6, "rows": 1}}, {"pretrain": {"steps": 5}},
])
def test_only_more_steps_extend_a_run(workdir, config):
    old = train_to(workdir, 4)
    with pytest.raises(ValueError, match="another configuration"):
        finished_results(workdir, PROGRAM, {**old, **config}, extend=True)


def test_more_steps_of_what_a_program_never_trains_are_refused(workdir):
    old = train_to(workdir, 4)
    names = ("config.json", "results.json", "completions.jsonl", "finished/seed0/results.json")
    before = {name: (workdir / name).read_text() for name in names}
    for _ in range(2):
        with pytest.raises(ValueError, match=r"extend: no phase of this run has fewer steps"):
            train_to(workdir, 4, extend=True, rl=9)
    assert before == {name: (workdir / name).read_text() for name in names}
    assert finished_results(workdir, PROGRAM, old)["steps"] == 3 + 4


def test_a_phase_that_others_came_after_cannot_be_extended_and_nothing_is_changed(workdir):
    old = train_to(workdir, 4, phases=("seed0/mixed", "seed0/other"))
    files = ("config.json", "results.json", "metrics.jsonl", "completions.jsonl")
    before = {name: (workdir / name).read_text() for name in files}
    marks = snapshot(workdir / "finished").keys()
    longer = configuration(6)
    with (
        Run(workdir, PROGRAM, longer, "data", Saving(extend=True)) as run,
        pytest.raises(ValueError, match=r"extend: seed0/mixed has ended at step 3"),
    ):
        run.phase("seed0/mixed", lambda: run.resume({}, {}), steps=6)
    assert before == {name: (workdir / name).read_text() for name in before}
    assert marks == snapshot(workdir / "finished").keys()
    assert not list(workdir.glob("before_extension_*"))
    assert finished_results(workdir, PROGRAM, old)["steps"] == 3 + 4


# Trackers


def test_events_hold_the_numbers_of_every_attempt(workdir):
    for attempt in (1, 2):
        with Run(workdir, PROGRAM, CONFIG) as run:
            for step in range(3):
                run.log_metrics("base", step, {"seed": 0, "loss": step / 4, "usage": [1, 2]})
        (file,) = (workdir / "events" / str(attempt)).iterdir()
        content = file.read_bytes()
        assert content.count(b"seed0/base/loss") == 3 and b"usage" not in content
    attempts = [json.loads(line) for line in (workdir / "attempts.jsonl").open()]
    assert [attempt["attempt"] for attempt in attempts] == [1, 2]


def test_a_full_disk_is_an_error_to_who_logs_and_nobody_waits(workdir, monkeypatch):
    from tensorboardX.event_file_writer import EventsWriter

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"), Run(workdir, PROGRAM, CONFIG) as run:
        run.log_metrics("base", 0, {"loss": 0.5})
        monkeypatch.setattr(EventsWriter, "write_event", full)
        for step in range(1, 30):  # more than a queue holds
            run.log_metrics("base", step, {"loss": 0.5})
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 2


def test_weights_and_biases_is_asked_for_and_missing(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"wandb_project='mine': wandb is not installed"):
        Run(workdir, PROGRAM, CONFIG, saving=Saving(wandb_project="mine"))


def test_weights_and_biases_gets_every_step_once_more(workdir, monkeypatch):
    told = []
    run = types.SimpleNamespace(log=told.append, finish=lambda: told.append("end"))
    fake = types.SimpleNamespace(init=lambda **about: told.append(about) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Run(workdir, PROGRAM, CONFIG, saving=Saving(wandb_project="mine")) as open_run:
        open_run.log_metrics("base", 7, {"seed": 0, "loss": 0.5})
    assert told[0]["project"] == "mine" and told[0]["resume"] == "allow"
    assert told[1] == {"seed0/base/loss": 0.5, "seed0/base/step": 7}
    assert told[2:] == ["end"]
    ids = []
    # Another attempt is the same run; a directory that is called alike is another one.
    for path in (workdir, workdir.parent.parent / "other" / workdir.parent.name / workdir.name):
        with Run(path, PROGRAM, CONFIG, saving=Saving(wandb_project="mine")):
            ids.append(told[-1]["id"])
    assert ids[0] == told[0]["id"] != ids[1]


# Progress


def test_work_without_steps_is_announced(capsys):
    with announced("matched  evaluation on 3 problems"):
        assert capsys.readouterr().out == "matched  evaluation on 3 problems: begins\n"
    assert re.fullmatch(
        r"matched  evaluation on 3 problems: took \d+ s\n", capsys.readouterr().out
    )


def test_progress_prints_plain_lines_off_a_terminal(capsys):
    progress = Progress("matched", total=3, every=0.0)
    for step in range(3):
        progress.advance(tokens=100, nll=0.5 + step)
    progress.close()
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 3 and "\r" not in out
    assert [line.split()[:4] for line in lines] == [
        ["matched", f"{i + 1}/3", "nll", f"{i}.500"] for i in range(3)
    ]
    # The first step compiles: it says nothing of the others.
    assert "tokens/s" not in lines[0] and "left" not in lines[0]
    assert "tokens/s" in lines[1] and lines[-1].endswith(" 0 s left")


def test_progress_without_tokens_shows_no_rate(capsys):
    Progress("writing", total=1).advance()
    assert capsys.readouterr().out.split() == ["writing", "1/1"]


def test_progress_prints_the_last_step_and_seldom_others(capsys):
    progress = Progress("base", total=500, every=1000.0)
    for _ in range(500):
        progress.advance(tokens=1)
    progress.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("base  500/500")
