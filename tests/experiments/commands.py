"""Programs called as from a command line, each in a process that has read no flag before."""

import contextlib
import io
import re
import runpy
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

from absl import app

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)
SHARED = ("absl.app", "jax", "reasoning.runtime.runs", "reasoning.evaluation.reports",
          "reasoning.rewards.judges", "reasoning.data.corpora")


def processes():
    """A pool whose processes have imported what programs share, but no program, and end at once."""
    context = get_context("forkserver")
    context.set_forkserver_preload(list(SHARED))
    return ProcessPoolExecutor(1, context, max_tasks_per_child=1)


def call(program, arguments, only_parse=False):
    """Exit status and output of `python -m experiments.PROGRAM ARGUMENTS`.

    Where only its flags are to be parsed, what is left of the arguments stands for the output.
    """

    def parse(main, argv=None, flags_parser=None):
        print(flags_parser(sys.argv)[1:], end="")

    status, output = 0, io.StringIO()
    with (
        contextlib.chdir(ROOT), contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output), patch.object(sys, "argv", ["", *arguments]),
        patch.object(app, "run", parse if only_parse else app.run),
    ):
        try:
            runpy.run_module(f"experiments.{program}", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            status = ended.code or 0
    return status, output.getvalue()


def commands(text):
    """`(program, arguments)` of each `python -m experiments.PROGRAM` of a text, backquoted or not.

    Variables of the shell are replaced by what the text sets them to.
    """
    text = text.replace("\\\n", " ")
    for name, value in re.findall(r'^\s*(\w+)="([^"]*)"$', text, re.MULTILINE):
        text = re.sub(rf"\${name}\b", value, text)
    inline = re.findall(r"`([^`]*python\s+-m experiments\.[^`]*)`", text)
    blocks = re.findall(r"^ {4}.*python -m experiments\..*$", text, re.MULTILINE)
    for line in (*inline, *blocks):
        for command in " ".join(line.split()).split("&&"):
            command = command.partition("python -m experiments.")[2].partition("   #")[0]
            if command:
                program, *arguments = shlex.split(command, comments=True)
                yield program, tuple(arguments)
