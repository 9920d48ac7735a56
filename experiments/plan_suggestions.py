"""Remat policies and batches that fit, guessed from the memory of the present ones and compiled.

A program that is too large takes the TPU's compiler minutes to give up: guesses spare most.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

from experiments.plan_reports import Report
from experiments.pod_programs import Plan, planned
from experiments.sft import mesh_shape

REMAT = ("none", "dots", "full")  # from the least recomputation to the least memory
_FARTHEST = 16  # a batch more times as large as the present one is not tried
_TRIES = 3  # of sizes from the guess on

Attempt = Callable[[Plan], bool]


def changed(plan: Plan, **settings: object) -> Plan:
    """The plan with settings named `section_field` replaced.

    Raises:
      ValueError: they cannot work.
    """
    config = copy.deepcopy(plan.config)
    for name, value in settings.items():
        section, _, field = name.partition("_")
        config[section][field] = value
    return planned(config)


def room(report: Report) -> float:
    """How many times the present batch's own memory the chip has left for it."""
    batch = sum(report.memory.get(kind, 0) for kind in ("activations", "cache", "the rest"))
    kept = report.total - batch
    return max(report.chip.memory - kept, 0) / max(batch, 1)


def first_that_fits(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The first of a few sizes that fits, None if none does."""
    return next((size for size in sizes[:_TRIES] if fits(size)), None)


def powers_below(size: float, unit: int) -> list[int]:
    """`unit` times powers of two, from the largest that is at most `size` down to `unit`."""
    sizes = []
    while unit <= size:
        sizes.append(unit)
        unit *= 2
    return sizes[::-1]


def suggestions(plan: Plan, report: Report, attempt: Attempt) -> Iterator[str]:
    """Settings under which a program fits, in sentences.

    Args:
      report: of the program as it is.
      attempt: compiles the program of another plan and says whether it fits.
    """
    of_program = {"training step": _of_training, "RL update": _of_rl, "sampler": _of_sampler}
    yield from of_program[report.program.name](plan, report, attempt)


def _of_training(plan: Plan, report: Report, attempt: Attempt) -> Iterator[str]:
    policy, rows = plan.model.remat, plan.config.finetune.rows
    at, parts = REMAT.index(policy), mesh_shape(plan.config).rows
    if report.fits:
        for remat in REMAT[:at][::-1]:  # each needs more memory than the one before
            if not attempt(changed(plan, model_remat=remat)):
                break
            policy = remat
        yield f"model.remat={policy} recomputes least of what fits {rows} rows"
    else:
        for remat in REMAT[at + 1 :]:
            if attempt(changed(plan, model_remat=remat)):
                yield f"model.remat={remat} recomputes least of what fits {rows} rows"
                return
    # What is known of the memory is the present policy's.
    times = min(room(report), _FARTHEST)
    sizes = powers_below(rows * times, parts)
    found = first_that_fits(sizes, lambda n: (n == rows and report.fits) or attempt(
        changed(plan, finetune_rows=n)
    ))
    if found:
        yield f"finetune.rows={found} fits model.remat={plan.model.remat}, the largest batch tried"
    else:
        yield f"no batch from {parts} rows on fits: raise mesh.fsdp or mesh.tensor"


def _of_rl(plan: Plan, report: Report, attempt: Attempt) -> Iterator[str]:
    settings, present = plan.config.rl, plan.rl.num_microbatches
    prompts = settings.prompts // settings.minibatches
    # A microbatch holds whole prompts, and its rows should fill the mesh.
    most = max(1, min(prompts, prompts * settings.samples // mesh_shape(plan.config).rows))
    needed = present / max(room(report), 1e-9)
    sizes = [n for n in range(1, most + 1) if prompts % n == 0 and n >= min(needed, most)]
    found = first_that_fits(sizes, lambda n: (n == present and report.fits) or attempt(
        changed(plan, rl_microbatches=n)
    ))
    if found:
        yield f"rl.microbatches={found} is the least that fits {settings.prompts} prompts"
    elif plan.model.remat != "full":
        yield "no rl.microbatches fit: set model.remat=full"
    else:
        yield "no rl.microbatches fit: lower rl.samples, or raise mesh.fsdp or mesh.tensor"


def _of_sampler(plan: Plan, report: Report, attempt: Attempt) -> Iterator[str]:
    settings = plan.config.rl
    least = max(mesh_shape(plan.config).rows, settings.microbatches * settings.minibatches)
    sizes = powers_below(settings.prompts * min(room(report), _FARTHEST), least)

    def fits(count: int) -> bool:
        problems = max(count * settings.rounds, settings.problems)
        more = {"rl_prompts": count, "rl_problems": problems}
        return (count == settings.prompts and report.fits) or attempt(changed(plan, **more))

    found = first_that_fits(sizes, fits)
    if found:
        yield f"rl.prompts={found} fits, the largest batch tried"
    else:
        yield f"no batch from {least} prompts on fits: lower rl.samples, or raise mesh.tensor"
