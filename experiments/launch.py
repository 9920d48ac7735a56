"""What every launcher shares: its flags, and one clear sentence for what cannot be run.

    python -m experiments.NAME --workdir=DIR [--config=FILE[:PRESET]] [--config.KEY=VALUE ...]
"""

import contextlib
import ctypes
import errno
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from experiments import sources, usage
from experiments.meanings import meanings
from reasoning.evaluation import reports
from reasoning.rewards.verdicts import TooManyFailures
from reasoning.run_files import TABLE
from reasoning.runtime.checkpoints import CannotRestore
from reasoning.runtime.directory import finished_results
from reasoning.runtime.meshes import check_accelerator, start_processes, use_mesh
from reasoning.runtime.processes import RefusedElsewhere, from_first
from reasoning.runtime.provenance import fingerprint
from reasoning.runtime.runs import Run, Saving

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="The file of the settings; countdown.py if left out."
)
_DEFAULT_CONFIG = Path(__file__).parent / "configs" / "countdown.py"
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's directory; the same command goes on in it."
)
_SAVE_EVERY = flags.DEFINE_float("save_every", 120.0, "Seconds between checkpoints.")
_MAX_MINUTES = flags.DEFINE_float(
    "max_minutes", None, "Stop after so long; the same command goes on."
)
_USE_PREVIOUS = flags.DEFINE_bool(
    "use_previous_checkpoint", False, "Where the last checkpoint is damaged, use the one before."
)
_EXTEND = flags.DEFINE_bool("extend", False, "Go on with a finished run of fewer steps.")
_WANDB = flags.DEFINE_string("wandb_project", None, "Also track the metrics there.")
_ACCELERATOR = flags.DEFINE_enum(
    "accelerator", None, ["tpu", "gpu", "cpu"], "Refuse to run on anything else."
)
_MULTIHOST = flags.DEFINE_bool("multihost", False, "One process of several, one on each host.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first process; on TPUs it is found out."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes; on TPUs it is found out.")
_PROCESS = flags.DEFINE_integer("process_id", None, "This one; on TPUs it is found out.")

# The flags that --help shows: of what reads a configuration, and of what writes a run.
CONFIG_FLAGS = ("config",)
RUN_FLAGS = ("workdir", "config", "max_minutes", "save_every", "use_previous_checkpoint", "extend",
             "wandb_project", "accelerator")
ONE_SETTING = ("--config.KEY=VALUE", "One setting; --help=config lists all.")

Setup = TypeVar("Setup")
Data = TypeVar("Data")
Purpose = Literal["init", "tags", "assign", "evaluate", "rollouts", "validate", "difficulty"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def refuse(error: object) -> NoReturn:
    """End the program with one line on stderr and exit status 2."""
    # ml_collections wraps a KeyError, which shows its message quoted, and puts the traceback of a
    # config file's own error into the message.
    while isinstance(error, Exception) and error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if isinstance(error, OSError) and error.filename:
        error = f"{error.filename}: {error.strerror}; mend that, and the same command goes on."
    if isinstance(error, flags.IllegalFlagValueError) and "Traceback" not in str(error):
        usage.refuse(error)
    message = _no_key(error) if isinstance(error, KeyError) else str(error).strip()
    if "Traceback" in message:
        message = message.splitlines()[-1].partition(": ")[2]
    usage.refuse(message)


def _no_key(error: KeyError) -> str:
    """The sentence on a key that the configuration lacks."""
    told = str(error.args[0])
    key = told.partition("\n")[0].rpartition("lookup: ")[2].strip("'")
    meant = re.search('Did you mean "(.+?)"', told)
    perhaps = f", perhaps {meant[1]!r} is meant" if meant else ""
    return f"the configuration has no key {key!r}{perhaps}; --help=config lists all."


def check_study(config: ml_collections.ConfigDict, needed: str, file: str) -> None:
    """Refuse a configuration without what a study reads (ValueError); `file` is one that has it."""
    if needed not in config:
        raise ValueError(
            f"config: describes no such study; give --config=experiments/configs/{file}."
        )


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What cannot run, or cannot be written, ends the program with one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        refuse(error)


@contextlib.contextmanager
def usable_directory() -> Iterator[None]:
    """A run that cannot go on, for its directory or its verifier, ends with one line."""
    try:
        yield
    except (CannotRestore, RefusedElsewhere, TooManyFailures) as error:
        refuse(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        refuse(error)


def run_program(
    program: str,
    config: ml_collections.ConfigDict,
    workdir: str,
    build: Callable[[ml_collections.ConfigDict], Setup],
    make_data: Callable[[Setup, ml_collections.ConfigDict], Data],
    run_seeds: Callable[[Run, Setup, Data, ml_collections.ConfigDict], list[dict[str, Any]]],
) -> None:
    """Check, train and evaluate every seed, then report; a finished run is only reported.

    Args:
      build: what the configuration describes; refuses what cannot run (ValueError).
      make_data: the training data, still before anything is written.
      run_seeds: one seed's results each; a single one's are the run's.
    """
    setup, results = prepare(program, build, config, workdir)
    if results is None:
        with refusals():
            data = make_data(setup, config)
            tokenizer = setup.text_format.tokenizer.fingerprint
            read = fingerprint((tokenizer, sources.files(config), data))
            run = Run(workdir, program, config.to_dict(), read, saving())
        with usable_directory(), run, use_mesh(setup.mesh):
            if jax.process_index() == 0:
                sources.save_tokenizer(run.path, setup.text_format)
            seeds = run_seeds(run, setup, data, config)
            results = seeds[0] if len(seeds) == 1 else reports.over_seeds(seeds)
            if jax.process_index() == 0:
                reports.plot_run(run.path, setup.task.strategies, results)
                run.finish(results)
    print(reports.table(results))
    print(f"plots: {workdir}/plots")


def run_study(
    program: str,
    config: ml_collections.ConfigDict,
    workdir: str,
    build: Callable[[ml_collections.ConfigDict], Setup],
    make_data: Callable[[Setup, ml_collections.ConfigDict], Data],
    work: Callable[[Run, Setup, Data, ml_collections.ConfigDict], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Run a study that has a table of its own, in table.txt; a finished one is only reported.

    Args:
      build: what the configuration describes; refuses what cannot run (ValueError).
      make_data: what the study reads, still before anything is written; a resumed run must read
        the same.
      work: the study itself, in phases of the run; returns results.json.
      table: the results as text.
    """
    setup, results = prepare(program, build, config, workdir)
    if results is None:
        with refusals():
            data = make_data(setup, config)
            read = fingerprint((data, sources.files(config)))
            run = Run(workdir, program, config.to_dict(), read, saving())
        with usable_directory(), run:
            results = work(run, setup, data, config)
            if jax.process_index() == 0:
                (run.path / TABLE).write_text(table(results) + "\n", encoding="utf-8")
                run.finish(results)
    print(table(results))


def saving() -> Saving:
    """What the flags say about saving and stopping."""
    if not flags.FLAGS.is_parsed():  # called as a function, not from a command line
        return Saving()
    return Saving(
        every=_SAVE_EVERY.value,
        max_minutes=_MAX_MINUTES.value,
        use_previous=_USE_PREVIOUS.value,
        extend=_EXTEND.value,
        wandb_project=_WANDB.value,
    )


def prepare(
    program: str,
    build: Callable[[ml_collections.ConfigDict], Setup],
    config: ml_collections.ConfigDict,
    workdir: str,
) -> tuple[Setup, dict[str, Any] | None]:
    """Check a configuration and the run directory; nothing is written.

    Returns:
      what `build` makes of the configuration, and the results if the run has finished already.
    """
    with refusals():
        setup = build(config)
        extend = saving().extend
        results = from_first(lambda: finished_results(workdir, program, config.to_dict(), extend))
    if results is not None:
        print(f"{workdir}: finished at step {results['steps']}, nothing is changed.")
    return setup, results


def run_key(seed: int, purpose: Purpose) -> jax.Array:
    """The key of one use of a run's seed: no two uses share their random numbers."""
    return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))


def keep_programs() -> None:
    """Keep compiled programs on disk, so that the next run starts sooner.

    In $XDG_CACHE_HOME/reasoning (~/.cache/reasoning), unless JAX_COMPILATION_CACHE_DIR names a
    place; JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    if jax.config.jax_compilation_cache_dir is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "reasoning" / "programs"))


def keep_memory() -> None:
    """Let what is freed stay with the process, on a CPU and with glibc.

    XLA allocates the arrays of every step anew. What glibc gives back in between comes from the
    kernel once more, page by page and cleared: a quarter of a small step's time.
    """
    if jax.default_backend() != "cpu" or platform.libc_ver()[0] != "glibc":
        return
    malloc = ctypes.CDLL(None)
    malloc.mallopt(_ARENA_MAX, 1)
    malloc.mallopt(_MMAP_MAX, 0)
    malloc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)  # bytes at the end of the heap: the most it takes


def parse(argv: list[str], shown: tuple[str, ...] = CONFIG_FLAGS) -> list[str]:
    """Parse the flags, the default configuration where none is named; returns what is left.

    Args:
      shown: the flags of this module that `--help` shows; it ends the program.
    """
    usage.answer(argv, [*(usage.row(flags.FLAGS[name]) for name in shown), ONE_SETTING])
    listed = [a for a in argv[1:] if a in ("--help=config", "-help=config")]
    config_flags.register_flag_parser_for_type(tuple, Words())
    try:
        left = flags.FLAGS([argv[0], *_file_first([a for a in argv[1:] if a not in listed])])
        _CONFIG.value  # noqa: B018 - loads the file, so that its errors come here
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        refuse(error)
    if listed:
        file = config_flags.get_config_filename(flags.FLAGS["config"])
        says = meanings(file)
        print(file)
        for line in settings(_CONFIG.value):
            comment = says.get(line.partition("=")[0])
            print(f"--config.{line}" + (f"  # {comment}" if comment else ""))
        sys.exit(0)
    return left


def _file_first(given: list[str]) -> list[str]:
    """Flags with the configuration's file before what changes it, the default where none is named.

    A default given to the flag itself would be loaded while this module is imported.

    Raises:
      ValueError: there is no such file.
    """
    names = ("--config", "-config")
    pairs = [i for i, flag in enumerate(given[:-1]) if flag in names]
    for i in reversed(pairs):
        given = [*given[:i], f"--config={given[i + 1]}", *given[i + 2 :]]
    files = [flag for flag in given if flag.partition("=")[0] in names and "=" in flag]
    for flag in files:
        path = flag.partition("=")[2].partition(":")[0]
        if not Path(path).is_file():
            raise ValueError(f"config={path}: there is no such file; see {_DEFAULT_CONFIG.parent}.")
    return [*(files or [f"--config={_DEFAULT_CONFIG}"]), *(f for f in given if f not in files)]


class Words(tuple_parser.TupleParser):
    """Tuples of words may do without quotes: `a,b` is two of them."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        """As `TupleParser`."""
        found = super().parse(argument)
        if found != (argument,) or not isinstance(argument, str):
            return found
        return tuple(word.strip() for word in argument.strip("()").split(",") if word.strip())


def settings(config: ml_collections.ConfigDict) -> Iterator[str]:
    """Every setting as `section.key=value`, in the order of the file's sections."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from (f"{key}.{line}" for line in settings(value))
        else:
            yield f"{key}={value}"


def configuration() -> ml_collections.ConfigDict:
    """The configuration that the flags describe, once they are parsed."""
    return _CONFIG.value


def start(program: Callable[[ml_collections.ConfigDict, str], None]) -> None:
    """Parse the flags and call `program(config, workdir)`."""

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            refuse(f"{argv[1]!r}: no such argument; settings are given as --config.KEY=VALUE.")
        if not _WORKDIR.value:
            refuse("workdir is missing: say where the run is to be written, --workdir=DIR.")
        keep_programs()
        with refusals():
            if _MULTIHOST.value:
                start_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
            if _ACCELERATOR.value:
                check_accelerator(_ACCELERATOR.value)
        keep_memory()
        program(_CONFIG.value, _WORKDIR.value)

    jax.config.config_with_absl()
    logging.set_verbosity(logging.WARNING)  # no word on accelerators that are not there
    app.run(main, flags_parser=partial(parse, shown=RUN_FLAGS))
