"""Kill a run again and again at random moments; does it end as the run that nobody disturbed?

    python -m experiments.interruptions --workdir=runs/kills --kills=50 \
        --program=experiments.quickstart --config=experiments/configs/smoke.py

Starts the program twice: once left alone, and once killed by SIGKILL `kills` times, each time after
a random time, and started again by the same command. Then compares, bit for bit: parameters of
every policy, metrics, completions and results, all less what a clock says. Prints one JSON line;
the exit status is 1 if anything differs.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Where both runs are written.", required=True)
_PROGRAM = flags.DEFINE_string("program", "experiments.quickstart", "The launcher to disturb.")
_KILLS = flags.DEFINE_integer("kills", 50, "How often.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_CONFIG = flags.DEFINE_string("config", "experiments/configs/smoke.py", "The launcher's.")
_CLOCKS = ("seconds", "tokens_per_second")  # what no two runs share


def main(argv: Sequence[str]) -> int:
    """Run both, compare, print; 0 if they are equal."""
    workdir = Path(_WORKDIR.value)
    command = [
        sys.executable, "-m", _PROGRAM.value, f"--config={_CONFIG.value}", "--save_every=0", *argv[1:]
    ]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "cache"),
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, **cache}
    alone, disturbed = workdir / "alone", workdir / "disturbed"
    run([*command, f"--workdir={alone}"], environment, None)  # fills the cache
    started = time.monotonic()
    run([*command, f"--workdir={workdir / 'again'}"], environment, None)
    span = time.monotonic() - started
    rng, killed = random.Random(_SEED.value), 0
    while killed < _KILLS.value:
        # From within the start of the process to beyond the longest way between two saves.
        if run([*command, f"--workdir={disturbed}"], environment, rng.uniform(0, span)):
            break
        killed += 1
    run([*command, f"--workdir={disturbed}"], environment, None)
    differences = compare(alone, disturbed)
    print(json.dumps({"program": _PROGRAM.value, "kills": killed, "differences": differences}))
    return 1 if differences else 0


def run(command: Sequence[str], environment: dict[str, str], limit: float | None) -> bool:
    """Run to the end, or kill after `limit` seconds; whether it ended by itself.

    Raises:
      RuntimeError: it failed.
    """
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors}")
    return True
