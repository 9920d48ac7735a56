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
# Their flags are of argparse: several runs, or names of pages.
ARGPARSE = ("report", "report_benchmark")
VARIABLE = r'\w+="?--'  # of the shell, that holds flags
SHARED = ("absl.app", "experiments.launch", "experiments.rl", "experiments.arms",
          "experiments.pod_programs", "experiments.step_benchmarks")  # none with flags of its own


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
    sys.modules.pop(f"experiments.{program}", None)  # else runpy warns that it is imported already
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
    """`(program, arguments)` of each `python -m experiments.PROGRAM` of a page or a docstring.

    In indented or fenced blocks, where variables of the shell are replaced by their values, and
    within backquotes elsewhere.
    """
    variables = {}
    for statement in statements(text):
        for name, value in variables.items():
            statement = re.sub(rf"\${name}\b", lambda _, value=value: value, statement)
        if re.match(VARIABLE, statement):
            name, value = shlex.split(statement, comments=True)[0].split("=", 1)
            variables[name] = value
        for command in statement.partition(" #")[0].split("&&"):
            called = command.partition("python -m experiments.")[2]
            if called:
                program, *arguments = shlex.split(called)
                yield program, tuple(arguments)


def statements(text):
    """The lines of blocks, each with those that go on with it, and what stands in backquotes."""
    lines, fenced, prose = [], False, []
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif lines and lines[-1].count('"') % 2:  # within a quotation
            lines[-1] += f" {line.strip()}"
        elif fenced or re.match(rf" {{4}}(.*python -m experiments\.|{VARIABLE})", line):
            lines.append(line.strip())
        elif not line.startswith("    "):
            prose.append(line)
    inline = re.findall(r"`([^`]+)`", "\n".join(prose))
    return lines + [" ".join(span.split()) for span in inline if "python -m experiments." in span]
