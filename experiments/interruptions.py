r"""Kill a run again and again at random moments: does it end as the run that nobody disturbed?

    python -m experiments.interruptions --directory=runs/kills --kills=50 \
        --program=experiments.quickstart -- --config=experiments/configs/smoke.py
    python -m experiments.interruptions --directory=runs/kills_sft --kills=5 --kill_seed=1 \
        --program=experiments.sft -- --config=experiments/configs/smoke.py --config.seed=1

Runs the program once undisturbed, and then under SIGKILL at random moments, each time started again
by the same command; a run that comes to its end is compared and followed by a new one, until there
were `kills` of them. Compared bit for bit: the parameters of every policy, metrics, completions and
results, all less what a clock says. Prints one JSON line; the exit status is 1 if anything differs,
2 if the directory is not empty.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags

from experiments import usage
from reasoning.run_files import COMPLETIONS, METRICS, RESULTS

_DIRECTORY = flags.DEFINE_string("directory", None, "Where the runs are written.", required=True)
_PROGRAM = flags.DEFINE_string("program", "experiments.quickstart", "The launcher to disturb.")
_KILLS = flags.DEFINE_integer("kills", 50, "How often.", lower_bound=1)
_SEED = flags.DEFINE_integer("kill_seed", 0, "Of the random moments.")

CLOCKS = ("seconds", "tokens_per_second", "evaluation_seconds", "versions")


def main(argv: Sequence[str]) -> int:
    """Run, kill, compare; 0 if all that came to an end is equal."""
    directory = Path(_DIRECTORY.value)
    if directory.is_dir() and any(directory.iterdir()):
        reason = "holds files already, and a run that has finished cannot be disturbed"
        print(f"error: directory={directory}: {reason}; choose another one.", file=sys.stderr)
        return 2
    alone, disturbed = directory / "alone", directory / "disturbed"
    command = [sys.executable, "-m", _PROGRAM.value, "--save_every=0", *argv[1:]]
    # The first run fills the compilation cache.
    run([*command, f"--workdir={directory / 'first'}"], directory, None)
    started = time.monotonic()
    run([*command, f"--workdir={alone}"], directory, None)
    span = time.monotonic() - started
    rng, kills, ends = random.Random(_SEED.value), 0, 0
    differences: list[str] = []
    while kills < _KILLS.value:
        if not run([*command, f"--workdir={disturbed}"], directory, rng.uniform(0, span)):
            kills += 1
            print(f"killed {kills} times, {ends} runs compared", file=sys.stderr, flush=True)
            continue
        ends += 1
        differences += compare(alone, disturbed)
        shutil.rmtree(disturbed)
    run([*command, f"--workdir={disturbed}"], directory, None)
    differences += compare(alone, disturbed)
    told = {"program": _PROGRAM.value, "kills": kills, "runs": ends + 1, "differences": differences}
    print(json.dumps(told))
    return 1 if differences else 0


def run(command: Sequence[str], directory: Path, limit: float | None) -> bool:
    """Run to the end, or kill after `limit` seconds; whether it came to its end.

    Raises:
      RuntimeError: it failed.
    """
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(directory / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    process = subprocess.Popen(
        command, env={**os.environ, **cache}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors}")
    return True


def compare(a: Path, b: Path) -> list[str]:
    """What two finished runs differ in, less what a clock says."""
    found = []
    for name in (METRICS, COMPLETIONS):
        lines = [(run / name).read_text().splitlines() for run in (a, b)]
        rows = [[timeless(json.loads(line)) for line in of_run] for of_run in lines]
        if len(rows[0]) != len(rows[1]):
            found.append(f"{name}: {len(rows[0])} and {len(rows[1])} lines")
        found += [f"{name}: line {i + 1}" for i, (x, y) in enumerate(zip(*rows)) if x != y]
    results = [timeless(json.loads((run / RESULTS).read_text())) for run in (a, b)]
    found += [RESULTS] * (results[0] != results[1])
    ours, theirs = dict(policies(a)), dict(policies(b))
    return found + [
        f"policies/{name}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]


def timeless(item: Any) -> Any:
    """A JSON object less what a clock says."""
    if isinstance(item, dict):
        return {k: timeless(v) for k, v in item.items() if k.partition("/")[0] not in CLOCKS}
    return [timeless(part) for part in item] if isinstance(item, list) else item


def policies(run: Path) -> Iterator[tuple[str, list[bytes]]]:
    """The parameters of each policy of a run, as bytes."""
    with ocp.StandardCheckpointer() as checkpointer:
        for path in sorted(run.glob("policies/**/state")):
            tree = checkpointer.restore(path.absolute())
            leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
            yield str(path.relative_to(run / "policies")), leaves


if __name__ == "__main__":
    app.run(main, flags_parser=usage.parse)
