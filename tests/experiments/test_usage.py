"""Help and examples of every program, and the documentation's commands, parsed as they stand."""

import ast
import importlib
import re

import pytest
from commands import ARGPARSE, PROGRAMS, ROOT, call, commands, processes
from ml_collections import ConfigDict

from experiments.meanings import meanings

DOCS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/**/*.md"),
        *ROOT.glob("colab/*.md")]
DEFINED = r'DEFINE_\w+\(\s*"(\w+)"'
# Flags of every run that runs.md speaks of.
RUN_FLAGS = {*re.findall(r"--(\w+)", (ROOT / "docs" / "runs.md").read_text())} & {
    *re.findall(DEFINED, (ROOT / "experiments" / "launch.py").read_text())
}


@pytest.fixture(scope="module")
def pool():
    with processes() as found:
        yield found


def docstring(program):
    return ast.get_docstring(ast.parse((ROOT / "experiments" / f"{program}.py").read_text()))


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_short_and_names_the_flags(pool, program):
    status, text = pool.submit(call, program, ["--help"]).result()
    assert status == 0
    lines = text.splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 100, text
    assert text.startswith(docstring(program).splitlines()[0])
    told = set(re.findall(r"^  --(\w+)", text, re.MULTILINE))
    source = (ROOT / "experiments" / f"{program}.py").read_text()
    own = set(re.findall(DEFINED, source))
    assert told > own, own - told
    if program not in ARGPARSE:
        assert ("workdir" in told) == ("launch.start(" in source) and "helpfull" in told
    if "launch.start(" in source:
        assert told >= RUN_FLAGS > {"workdir", "save_every", "use_previous_checkpoint", "extend"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_its_examples_are_parsed(pool, program):
    examples = [each for each in commands(docstring(program)) if each[0] == program]
    assert len(set(examples)) >= 2
    for _, arguments in examples:
        assert_parsed(pool, program, arguments)


def documented():
    found = {}
    for path in DOCS:
        for program, arguments in commands(path.read_text()):
            # Names alone, and what stands for any program, are no commands.
            if arguments and program != "NAME" and not any("..." in a for a in arguments):
                found.setdefault((program, arguments), path.name)
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_commands_of_the_documentation_are_parsed(pool, program):
    for name, arguments in documented():
        assert name in PROGRAMS, name
        if name == program:
            assert_parsed(pool, program, arguments)


def test_every_flag_is_given_by_a_test_or_a_command():
    sources = [path.read_text() for path in (ROOT / "experiments").glob("*.py")]
    flag = r'(?:DEFINE_\w+\(\s*"|add_argument\(\s*"--)(\w+)"'
    defined = {name for text in sources for name in re.findall(flag, text)}
    assert {"workdir", "config", "topology", "scored"} <= defined
    told = [path.read_text() for path in DOCS] + [docstring(program) for program in PROGRAMS]
    typed = [argument for text in told for _, given in commands(text) for argument in given]
    typed += [path.read_text() for path in ROOT.glob("tests/**/*.py")]
    typed += [path.read_text() for path in ROOT.glob("experiments/tpu/*") if path.is_file()]
    given = set(re.findall(r"--(\w+)", " ".join(typed)))
    assert sorted(defined - given) == []


def assert_parsed(pool, program, arguments):
    if program in ARGPARSE:
        module = importlib.import_module(f"experiments.{program}")
        module.flag_parser().parse_args(arguments)  # exits at what it does not know
        return
    status, output = pool.submit(call, program, arguments, only_parse=True).result()
    assert status == 0, f"{program} {' '.join(arguments)}\n{output}"
    left = ast.literal_eval(output.splitlines()[-1])
    if "--" in arguments:  # flags of another program
        (other,) = (a.rpartition(".")[2] for a in arguments if a.startswith("--program="))
        assert left == list(arguments[arguments.index("--") + 1 :])
        assert_parsed(pool, other, left)
    else:
        assert left == []


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("sft", ["--workdirs=x"], "Unknown command line flag 'workdirs'"),
        ("sft", ["--config.finetune.step=1"],
         "no key 'step', perhaps 'steps' is meant; --help=config lists all."),
        ("sft", ["--config.seed.a=1"], "no key 'seed.a'; --help=config lists all."),
        ("sft", ["--config.evaluation.problems=1O0"], "error: config.evaluation.problems=1O0: "
         "must be an integer, such as 400, the default."),
        ("sft", ["--config.model.d_model=1: 2"],
         "error: config.model.d_model=1: 2: must be an integer."),
        ("sft", ["--config.model.chat=x"], "error: config.model.chat=x: must be true or false."),
        ("sft", ["--save_every=1O"], "save_every=1O: must be a number, such as 120.0, the"),
        ("sft", ["--accelerator=cqu"], "error: accelerator=cqu: must be one of tpu, gpu, cpu."),
        ("sft", ["--config=experiments/none.py"], "experiments/none.py: there is no such file"),
        ("sft", ["--config=experiments/configs/countdown.py:ful"], "--config=FILE:PRESET"),
        ("distill", ["--config=experiments/configs/distill.py:ful"], "--config=FILE:PRESET"),
        ("benchmark", ["--siz=tiny"], "Unknown command line flag 'siz'"),
        ("show_task", ["--count=0"], "error: count=0: must be a positive integer, such as 3,"),
        ("interruptions", [], "error: directory=None: Flag --directory must have a value"),
    ],
)
def test_a_mistyped_flag_is_one_sentence(pool, program, arguments, message):
    status, output = pool.submit(call, program, arguments, only_parse=True).result()
    assert status == 2 and output.startswith("error: ") and output.count("\n") == 1
    assert message in output


def test_a_picture_of_what_is_not_measured_is_refused(pool):
    arguments = ["--only=sft", "--size=tiny", "--plot=growth.png"]
    status, output = pool.submit(call, "benchmark", arguments).result()
    assert status == 2 and output.endswith(
        "error: plot='growth.png': shows growth; add it to --only.\n"
    )


def test_the_settings_are_listed_as_they_are_set(pool):
    arguments = ["--help=config", "--config.rl.steps=7", "--config.judge.rules=boxed,hashes"]
    status, output = pool.submit(call, "rl", arguments).result()
    path, *lines = output.splitlines()
    assert status == 0 and path.endswith("experiments/configs/countdown.py")
    assert {
        "--config.judge.rules=('boxed', 'hashes')  # and final_number",
        "--config.rl.steps=7", "--config.seed=0", "--config.model.d_model=None",
        # Of a function that several sections are made by.
        *(f"--config.{each}.rounds=1  # dynamic sampling draws so many times to fill "
          "uninformative groups" for each in ("rl", "grpo", "t1")),
        "--config.corpus.vocab_size=2048  # of the tokenizer that is trained on it",
        "--config.corpus.name=None",  # and not what is said of task.name
    } <= {*lines}


def test_the_meaning_is_the_comment_of_the_last_line_that_has_one(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("""
from experiments.configs import smoke

def get_config(preset="a"):
    config = smoke.get_config()
    config.rl.printed = len(preset)  # so many # of them
    config.rl.rounds = 2
    # not of a setting
    config.arm = "#mixed"
    return config
""")
    for preset in ("", ":abc"):
        found = meanings(f"{file}{preset}")
        assert found["rl.printed"] == "so many # of them"
        assert found["rl.rounds"].startswith("dynamic sampling draws")  # of countdown.py
        assert found["arm"].startswith("for experiments.sft")
        assert found["grpo.printed"].startswith("completions shown")
        assert "seed" not in found and "rl" not in found
    assert ConfigDict.__setitem__.__module__.startswith("ml_collections")  # as it was
