"""What `--help` prints: a program's own docstring, and the flags that matter to it.

    app.run(main, flags_parser=usage.parse)

The docstring says what the program does and shows two commands; absl's list of every flag is what
`--helpfull` prints.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NoReturn

from absl import flags

ASKED = ("--help", "-help", "-h", "-?")
Row = tuple[str, str]  # how a flag is written, and what it says


def parse(argv: Sequence[str], shared: Sequence[Row] = ()) -> list[str]:
    """Parse the flags; asked for help, or given a flag that there is not, end the program.

    Args:
      shared: the flags of other modules that help shows.

    Returns:
      `argv` without the flags.
    """
    answer(argv, shared)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        refuse(error)


def refuse(error: object) -> NoReturn:
    """End the program with one line on stderr and exit status 2."""
    told = wrong_value(error) if isinstance(error, flags.IllegalFlagValueError) else str(error)
    print(f"error: {' '.join(told.split())}", file=sys.stderr)
    sys.exit(2)


def wrong_value(error: flags.IllegalFlagValueError) -> str:
    """What a flag's value must be, where absl tells what Python's conversion said of it."""
    why, told = error.__context__, str(error).removeprefix("flag --")
    if why is None:  # a rule of the flag itself, in words
        return told
    given = told.removesuffix(f": {why}")
    flag = flags.FLAGS[given.partition("=")[0]]
    match flag.parser:
        case flags.EnumParser(enum_values=known):
            return f"{given}: must be one of {', '.join(known)}."
        case flags.BooleanParser():
            return f"{given}: must be true or false."
        case flags.IntegerParser(syntactic_help=kind) | flags.FloatParser(syntactic_help=kind):
            such = "" if flag.default is None else f", such as {flag.default}, the default"
            return f"{given}: must be {kind}{such}."
    return told


def answer(argv: Sequence[str], shared: Sequence[Row] = ()) -> None:
    """Print the help and end the program with status 0, if `argv` asks for it before any `--`."""
    asked = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if set(ASKED) & set(asked):
        own = flags.FLAGS.get_flags_for_module(sys.argv[0])
        print(text(sys.modules["__main__"].__doc__, [*map(row, own), *shared]), flush=True)
        sys.exit(0)


def row(flag: flags.Flag) -> Row:
    """How a flag is written, with its default where it is short, and what it says."""
    short = flag.default not in (None, []) and len(flag.default_as_str) <= 20
    value = flag.default_as_str.strip("'") if short else "..."
    return f"--{flag.name}" if flag.boolean else f"--{flag.name}={value}", flag.help


def text(doc: str, rows: Iterable[Row]) -> str:
    """A program's docstring above its flags, in at most 100 columns."""
    form = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=doc.strip(), add_help=False,
        formatter_class=partial(
            argparse.RawDescriptionHelpFormatter, width=98, max_help_position=24
        ),
    )
    listed = form.add_argument_group("flags")
    for written, says in (*rows, ("--helpfull", "Every flag, jax's among them.")):
        listed.add_argument(written, action="store_true", help=says.replace("%", "%%"))
    return form.format_help().strip()
