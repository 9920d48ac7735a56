"""The program that prints problems, run as a user runs it."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def show_task(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.show_task", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )


def test_it_prints_every_strategy_with_answer_and_verdict():
    flags = ("--task=group_words", "--count=2", "--split=test", "--set", "group=S4")
    result = show_task(*flags, "--set", "length=3")
    assert result.returncode == 0 and result.stderr == ""
    prompts = [line for line in result.stdout.splitlines() if line.startswith("Prompt: ")]
    assert len(set(prompts)) == 2
    assert all(len(prompt.split()) == 5 for prompt in prompts)  # "Prompt: a b c :"
    for strategy in ("direct", "left", "right", "tree", "filler"):
        assert result.stdout.count(f"\n  {strategy}: ") == 2
    assert result.stdout.count("    answer: ") == result.stdout.count(" (correct)") == 10
    assert show_task(*flags, "--set", "length=3").stdout == result.stdout


def test_it_says_where_a_strategy_finds_nothing():
    stdout = show_task("--task=countdown", "--count=5", "--set=tries=1").stdout
    assert stdout.count("Prompt: ") == 5
    assert "no answer within its budget\n" in stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task=sudoku"], "task='sudoku': must be one of countdown, "),
        (["--set=colour=3"], "colour=3: task 'countdown' takes size, "),
        (["--set=size=big"], "size='big': task 'countdown' takes int here."),
        (["--set=size"], "set='size': write key=value, "),
        (["--set", "size=3", "tries=2"], "'tries=2' is no flag: "),
    ],
)
def test_a_mistake_is_one_sentence_and_an_error_code(flags, message):
    result = show_task(*flags)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_a_reader_may_stop_early():
    command = f"{sys.executable} -m experiments.show_task --count=1000 | head -n 1"
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, shell=True
    )
    assert result.stdout.startswith("Prompt: ") and result.stderr == ""
