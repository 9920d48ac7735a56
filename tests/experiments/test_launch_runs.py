"""A launcher's run directory from outside: stopped, finished, extended, damaged, refused."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.launch import usable_directory
from reasoning.rewards.verdicts import TooManyFailures
from reasoning.runtime.directory import lock

ROOT = Path(__file__).parents[2]
TINY = (
    "--config=experiments/configs/smoke.py", "--config.model.preset=0.1m",
    "--config.evaluation.problems=2", "--config.evaluation.validation_problems=2",
    "--config.pretrain.problems=40", "--config.finetune.problems=40", "--config.arm=mixed",
)


def launch(workdir, *flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.sft", *TINY, f"--workdir={workdir}", *flags],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=600,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that the clock stopped after its first step, and that then went on to its end."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    stopped = launch(workdir, "--max_minutes=0")
    assert stopped.returncode == 75, stopped.stderr
    assert "stopped by max_minutes=0 after step 1 of seed0/base" in stopped.stdout
    done = launch(workdir)
    assert done.returncode == 0, done.stderr
    assert "seed0/base: goes on after step 1." in done.stdout
    return workdir


def refused(done, *words):
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.slow
def test_a_finished_run_says_so_and_is_extended_when_asked(finished):
    again = launch(finished)
    assert again.returncode == 0 and "finished at step 12, nothing is changed" in again.stdout
    refused(launch(finished, "--config.finetune.steps=8"), "finetune.steps is 6 there and 8 here")
    longer = launch(finished, "--config.finetune.steps=8", "--extend")
    assert longer.returncode == 0, longer.stderr
    assert "seed0/mixed: goes on after step 6." in longer.stdout
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if row["phase"] == "mixed"] == list(range(8))
    results = json.loads((finished / "results.json").read_text())
    assert results["steps"] == 6 + 8 and results["arms"]["mixed"]["training"]["steps"] == 8
    before = (finished / "completions.jsonl").read_text()
    other = ("--config.finetune.steps=8", "--config.rl.steps=9", "--extend")
    refused(launch(finished, *other), "extend: no phase of this run has fewer steps")
    assert (finished / "completions.jsonl").read_text() == before


@pytest.mark.slow
def test_what_a_run_cannot_go_on_with_is_one_line(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "results.json").unlink()
    (workdir / "finished" / "seed0" / "results.json").unlink()
    damaged = next((workdir / "policies" / "seed0" / "mixed" / "0" / "state").rglob("d/*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    steps = json.loads((workdir / "config.json").read_text())["config"]["finetune"]["steps"]
    refused(
        launch(workdir, f"--config.finetune.steps={steps}"), "its content is not what was written"
    )


@pytest.mark.slow
def test_what_the_first_process_refuses_ends_all_with_its_sentence(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"--coordinator=localhost:{free.getsockname()[1]}"
    job = (address, "--multihost", "--num_processes=2", "--config.mesh.tensor=2",
           "--jax_num_cpu_devices=1")
    with lock(tmp_path), ThreadPoolExecutor() as both:
        ends = [both.submit(launch, tmp_path, *job, f"--process_id={i}") for i in (0, 1)]
    for end in ends:
        refused(end.result(), "another process is writing this run")


def test_a_verifier_that_fails_too_often_ends_a_run_with_one_line(capsys):
    with pytest.raises(SystemExit) as stopped, usable_directory():
        raise TooManyFailures("max_failures=0.01: 2 of the last 100 answers")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: max_failures=0.01: 2 of the last 100 answers\n"


def test_another_machine_is_refused(tmp_path):
    refused(launch(tmp_path / "run", "--accelerator=tpu"), "jax finds only cpu devices")
    refused(launch(tmp_path / "run", "--config.mesh.tensor=3"), "mesh.tensor=3: does not divide")
    refused(launch(tmp_path / "run", "--config.mesh.fsdp=2"), "2 places for 1 devices")
    refused(launch("gs://bucket/run"), "a run needs a file system")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what glibc keeps")
def test_freed_memory_stays_with_the_process():
    script = """
import resource
import numpy as np
from experiments import launch

def pages_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = [pages_taken() for _ in range(3)][-1]
launch.keep_memory()
print(given_back, [pages_taken() for _ in range(3)][-1])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "JAX_PLATFORMS": "cpu",
                               "GLIBC_TUNABLES": "", "NUMPY_MADVISE_HUGEPAGE": "0"}, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 1000 and kept < 100
