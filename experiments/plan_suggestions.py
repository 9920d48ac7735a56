"""Remat policies and batches that fit, found by compiling a few."""

import copy
from collections.abc import Callable, Iterator

from experiments.pod_programs import Plan, planned

REMAT = ("none", "dots", "full")  # from the least recomputation to the least memory
_DOUBLINGS = 3  # compiling is slow: a larger batch than eight times the present one is not tried


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


def largest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest `low * 2**n <= high` that fits, None if `low` does not; by bisection.

    Args:
      fits: monotone: what is larger than one that does not fit does not either.
    """
    sizes = [low]
    while sizes[-1] * 2 <= high:
        sizes.append(sizes[-1] * 2)
    first, last = -1, len(sizes)  # the last known to fit, the first known not to
    while last - first > 1:
        middle = (first + last) // 2
        if fits(sizes[middle]):
            first = middle
        else:
            last = middle
    return sizes[first] if first >= 0 else None


def suggestions(
    plan: Plan, name: str, does_fit: bool, attempt: Callable[[Plan], bool]
) -> Iterator[str]:
    """Settings under which a program fits, in sentences.

    Args:
      does_fit: whether it does as it is.
      attempt: compiles the program of a plan and says whether it fits.
    """
    of_program = {"training step": _of_training, "RL update": _of_rl, "sampler": _of_sampler}
    yield from of_program[name](plan, does_fit, attempt)


def _parts(plan: Plan) -> int:
    mesh = plan.config.mesh
    return mesh.replica * mesh.data * mesh.fsdp


def _of_training(plan: Plan, does_fit: bool, attempt: Callable[[Plan], bool]) -> Iterator[str]:
    present, rows = plan.model.remat, plan.config.finetune.rows
    cheaper = REMAT[: REMAT.index(present)] if does_fit else REMAT[REMAT.index(present) + 1 :]
    policy = present if does_fit else None
    for remat in cheaper:
        if attempt(changed(plan, model_remat=remat)):
            policy = remat
            break
    if policy:
        yield f"model.remat={policy} recomputes least of what fits {rows} rows"
    low = rows if does_fit or policy else _parts(plan)
    high = rows * 2**_DOUBLINGS if does_fit or policy else rows
    found = largest(
        low, high, lambda n: attempt(changed(plan, finetune_rows=n, model_remat="full"))
    )
    if found:
        yield f"finetune.rows={found} is the largest that fits model.remat=full, of {low} to {high}"
    else:
        yield f"no rows from {low} to {high} fit: raise mesh.fsdp or mesh.tensor"


def _of_rl(plan: Plan, does_fit: bool, attempt: Callable[[Plan], bool]) -> Iterator[str]:
    settings = plan.config.rl
    prompts = settings.prompts // settings.minibatches
    # A microbatch holds whole prompts, and its rows should fill the mesh.
    most = max(1, min(prompts, settings.prompts * settings.samples // _parts(plan)))
    sizes = [n for n in range(1, most + 1) if prompts % n == 0]
    tried = [n for n in sizes if (n < settings.microbatches) == does_fit]
    # The fewest parts that fit: fewer parts are larger matrix products.
    best, low, high = settings.microbatches if does_fit else None, 0, len(tried)
    while low < high:
        middle = (low + high) // 2
        if attempt(changed(plan, rl_microbatches=tried[middle])):
            best, high = tried[middle], middle
        else:
            low = middle + 1
    if best:
        yield f"rl.microbatches={best} is the least that fits {settings.prompts} prompts"
    elif plan.model.remat != "full":
        yield "no rl.microbatches fit: set model.remat=full"
    else:
        yield "no rl.microbatches fit: lower rl.samples, or raise mesh.fsdp or mesh.tensor"


def _of_sampler(plan: Plan, does_fit: bool, attempt: Callable[[Plan], bool]) -> Iterator[str]:
    prompts, least = plan.config.rl.prompts, max(_parts(plan), plan.config.rl.microbatches)
    low, high = (prompts, prompts * 2**_DOUBLINGS) if does_fit else (least, prompts)

    def fits(count: int) -> bool:
        more = {"rl_prompts": count, "rl_problems": max(count, plan.config.rl.problems)}
        return attempt(changed(plan, **more))

    found = largest(low, high, fits)
    if found:
        yield f"rl.prompts={found} is the largest that fits, of {low} to {high}"
    else:
        yield f"no rl.prompts from {low} to {high} fit: lower rl.samples, or raise mesh.tensor"
