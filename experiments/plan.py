r"""The plan for a pod: what a configuration's programs need of every device of a topology.

    python -m experiments.plan --config=experiments/configs/pod.py:v5p --topology=v5p:4x4x8
    python -m experiments.plan --config=experiments/configs/smoke.py --topology=cpu:8 \
        --config.mesh.fsdp=8 --config.rl.prompts=8 --hlo=runs/hlo

Lowers and compiles the training step, the RL update and the sampler for the topology, with
libtpu's own compiler and no TPU attached (extra `tpu`), or for simulated CPU devices. Prints memory
by kind against the chip's, work, collectives and time, and a verdict. With --suggest, or where
something does not fit, it compiles other remat policies and batches and names those that do.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import ml_collections
from absl import app, flags, logging
from jax.sharding import Mesh

from experiments import launch, plan_reports
from experiments.plan_reports import Report
from experiments.plan_suggestions import suggestions
from experiments.pod_programs import PROGRAMS, Plan, planned
from experiments.sft import mesh_shape
from reasoning.models.config import count_parameters
from reasoning.runtime.chips import Chip, topology
from reasoning.runtime.meshes import make_mesh

_TOPOLOGY = flags.DEFINE_string("topology", "cpu:8", "Chips, as v5e:16x16, v5p:4x4x8 or cpu:8.")
_PROGRAMS = flags.DEFINE_list("programs", list(PROGRAMS), f"Some of {', '.join(PROGRAMS)}.")
_SUGGEST = flags.DEFINE_bool("suggest", False, "Look for batches and remat policies that fit.")
_COLLECTIVES = flags.DEFINE_integer("collectives", 5, "How many of the largest are printed.")
_HLO = flags.DEFINE_string("hlo", None, "A directory for the compiled programs' text.")


def make_report(
    plan: Plan, mesh: Mesh, chip: Chip, name: str, hlo: str | None = None
) -> Report:
    """Compile one program and read what it costs.

    Args:
      hlo: a directory for the compiled program's text.
    """
    program = PROGRAMS[name](plan, mesh)
    started = time.monotonic()
    try:
        compiled = program.lower(mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = plan_reports.memory_needed(str(error))
        if needed is None:
            raise
        return plan_reports.too_large(program, chip, needed, time.monotonic() - started)
    seconds = time.monotonic() - started
    if hlo:
        path = Path(hlo)
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{name.replace(' ', '_')}.txt").write_text(compiled.as_text(), encoding="utf-8")
    return plan_reports.read(program, compiled, chip, seconds)


def run(
    config: ml_collections.ConfigDict,
    where: str,
    names: Sequence[str],
    suggest: bool = False,
    largest: int = 5,
    hlo: str | None = None,
) -> list[Report]:
    """Compile the named programs for a topology, print each one's report, and a table of all.

    Args:
      suggest: look for batches and remat policies that fit, also where the present ones do.
      largest: how many collectives are printed.
      hlo: a directory for the compiled programs' text.

    Raises:
      ValueError: an unknown topology or program, or a configuration that cannot run on it.
    """
    for name in names:
        if name not in PROGRAMS:
            raise ValueError(f"programs={name!r}: must be some of {', '.join(PROGRAMS)}.")
    devices, chip = topology(where)
    mesh = make_mesh(mesh_shape(config), devices)
    plan = planned(config)
    sizes = " ".join(f"{axis}={size}" for axis, size in config.mesh.items() if size > 1)
    print(
        f"{count_parameters(plan.model):,} parameters, sequences of {plan.model.max_length}, "
        f"{where}: {len(devices)} x {chip.name}, mesh {sizes or 'of one device'}\n"
    )
    reports = []
    for name in names:
        report = make_report(plan, mesh, chip, name, hlo)
        print(plan_reports.describe(report, plan, largest), flush=True)
        if suggest or not report.fits:
            attempt = partial(_fits, mesh, chip, name)
            for line in suggestions(plan, report, attempt):
                print(f"  suggestion   {line}", flush=True)
        print()
        reports.append(report)
    print(plan_reports.table(reports))
    return reports


def _fits(mesh: Mesh, chip: Chip, name: str, plan: Plan) -> bool:
    return make_report(plan, mesh, chip, name).fits


def main(argv: Sequence[str]) -> None:
    """Plan what the flags name."""
    if argv[1:]:
        launch.refuse(f"{argv[1]!r}: no such argument; settings are given as --config.KEY=VALUE.")
    logging.set_verbosity(logging.WARNING)
    with launch.refusals():
        run(
            launch.configuration(), _TOPOLOGY.value, _PROGRAMS.value, _SUGGEST.value,
            _COLLECTIVES.value, _HLO.value,
        )


if __name__ == "__main__":
    app.run(main, flags_parser=launch.parse)
