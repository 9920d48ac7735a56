"""What a compiled program needs of a device, against what the chip has, in words and in a table."""

import dataclasses
import math
import re
from collections import defaultdict
from typing import Any

import jax

from experiments.pod_programs import Plan, Program
from experiments.sft import mesh_shape
from reasoning.runtime.chips import GIB, Chip
from reasoning.runtime.programs import Collective, Cost, analyse

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Report:
    """One program on one device.

    Attributes:
      program: what was compiled.
      chip: for which.
      memory: kind -> bytes, at the program's peak; "in all" alone where it was too large.
      cost: of one call, or of one step of the sampler's decoding; None where it was too large.
      prefill: the sampler's cost before decoding, else None.
      seconds: that compiling took.
    """

    program: Program
    chip: Chip
    memory: dict[str, int]
    cost: Cost | None
    prefill: Cost | None
    seconds: float

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the chip's memory holds it."""
        return self.cost is not None and self.total <= self.chip.memory

    @property
    def devices(self) -> int:
        """Devices that the program is cut over."""
        leaves = jax.tree.leaves(self.program.arguments)
        return max(len(leaf.sharding.device_set) for leaf in leaves)

    @property
    def compute_seconds(self) -> float | None:
        """The compiler's estimate of the instructions on the device; None without a clock."""
        return self.cost.cycles / self.chip.clock if self.cost and self.chip.clock else None

    @property
    def link_seconds(self) -> float | None:
        """Seconds that the collectives' bytes take over one axis of the torus."""
        return self.cost.moved / self.chip.ici if self.cost and self.chip.ici else None

    def mfu(self, seconds: float) -> float:
        """Share of the chip's peak that the model's own FLOPs make, in so many seconds."""
        return self.program.model_flops / self.devices / self.chip.flops / seconds


def shard_bytes(tree: Any) -> int:
    """Bytes of one device's share of the arrays."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def memory_needed(message: str) -> int | None:
    """Bytes that a compiler's refusal names as needed, None if it is another error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", message) or re.search(
        r"\(([\d.]+)([KMGT]?)\) exceeds", message
    )
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def too_large(program: Program, chip: Chip, needed: int, seconds: float) -> Report:
    """The report of a program that the compiler refused for its memory."""
    memory = {kind: shard_bytes(tree) for kind, tree in program.kinds.items()}
    memory["the rest"] = max(needed, chip.memory + 1) - sum(memory.values())
    return Report(program, chip, memory, None, None, seconds)


def read(program: Program, compiled: jax.stages.Compiled, chip: Chip, seconds: float) -> Report:
    """The report of a compiled program."""
    stats = compiled.memory_analysis()
    memory = {kind: shard_bytes(tree) for kind, tree in program.kinds.items()}
    arguments = stats.argument_size_in_bytes
    total = arguments + stats.output_size_in_bytes - stats.alias_size_in_bytes
    total += stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
    if program.cache is not None:
        memory["cache"] = shard_bytes(program.cache)
    memory["activations"] = total - sum(memory.values())
    text = compiled.as_text()
    cost, prefill = analyse(text), None
    if program.steps > 1:
        steps = analyse(text, unknown_trips=2).minus(cost)  # one of each loop
        cost, prefill = steps.divided(program.loops), cost.minus(steps)
    return Report(program, chip, memory, cost, prefill, seconds)


def by_kind(collectives: tuple[Collective, ...]) -> dict[str, tuple[float, float]]:
    """Kind of collective -> how often it is done, and the bytes that a device sends in all."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for x in (x for x in collectives if x.count):
        sums[x.kind][0] += x.count
        sums[x.kind][1] += x.count * x.moved
    ordered = sorted(sums.items(), key=lambda item: -item[1][1])
    return {kind: (count, moved) for kind, (count, moved) in ordered}


def amount(value: float, unit: str) -> str:
    """A number with its prefix: 5.96e13 FLOPs as 59.6 TFLOPs."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def gib(size: int) -> str:
    """Bytes as GiB, or as MiB below a hundredth."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"


def verdict(report: Report, plan: Plan) -> str:
    """`fits`, or which setting to change."""
    if report.fits:
        return "fits"
    have, config = report.chip.memory, plan.config
    kept = sum(shard_bytes(tree) for tree in report.program.kinds.values())
    if kept > 0.9 * have:
        return "too large: raise mesh.fsdp or mesh.tensor; what is kept between steps fills it"
    if report.program.name == "sampler":
        return "too large: lower rl.prompts or rl.samples, or raise mesh.tensor"
    if report.program.name == "RL update" and plan.rl.num_microbatches < plan.rl.num_prompts:
        return "too large: raise rl.microbatches"
    if plan.model.remat != "full":
        return "too large: set model.remat=full"
    if report.program.name == "training step" and config.finetune.rows > mesh_shape(config).rows:
        return "too large: lower finetune.rows"
    return "too large: raise mesh.tensor, or lower model.max_length"


def describe(report: Report, plan: Plan, largest: int) -> str:
    """The report in lines, with so many of the largest collectives."""
    name, chip = report.program.name, report.chip
    kinds = ", ".join(f"{kind} {gib(size)}" for kind, size in report.memory.items())
    lines = [
        f"{name} (compiled in {report.seconds:.0f} s)",
        f"  memory       {kinds}: {gib(report.total)} of {gib(chip.memory)}",
    ]
    if report.cost:
        lines += _work(report, largest)
    return "\n".join([*lines, f"  verdict      {verdict(report, plan)}"])


def _work(report: Report, largest: int) -> list[str]:
    cost, chip = report.cost, report.chip
    what = "each token of every row" if report.program.steps > 1 else "a step"
    intensity = cost.flops / max(cost.hbm_bytes, 1)
    ridge = f" (the chip's: {chip.flops / chip.bandwidth:.0f})" if chip.flops else ""
    lines = [
        f"  work         {what}: {amount(cost.flops, 'FLOPs')}, {amount(cost.hbm_bytes, 'B')} of "
        f"HBM, {intensity:.3g} FLOPs per byte{ridge}",
        f"  exchange     {amount(cost.moved, 'B')} sent by a device: " + (", ".join(
            f"{kind} {amount(moved, 'B')} in {count:.0f}"
            for kind, (count, moved) in by_kind(cost.collectives).items()
        ) or "nothing"),
    ]
    done = [x for x in cost.collectives if x.count]
    ordered = sorted(done, key=lambda x: -x.moved * x.count)
    for x in ordered[:largest]:
        source = "/".join(part for part in x.source.split("/")[-3:])
        lines.append(
            f"    {amount(x.moved * x.count, 'B'):>8}  {x.count:.0f} {x.kind} among {x.devices} of "
            f"{_shortened(x.shape)} {source}"
        )
    compute, links = report.compute_seconds, report.link_seconds
    if compute:
        best, worst = max(compute, links), compute + links
        lines.append(
            f"  time         {compute:.3g} s by the compiler's cycles, links {links:.3g} s: MFU "
            f"{report.mfu(best):.1%} where the two overlap, {report.mfu(worst):.1%} in turn"
        )
    if report.prefill:
        before = report.prefill
        lines.append(
            f"  prefill      {amount(before.flops, 'FLOPs')}, {amount(before.hbm_bytes, 'B')} of "
            f"HBM, {amount(before.moved, 'B')} sent; then up to {report.program.steps} steps"
        )
    return lines


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def table(reports: list[Report]) -> str:
    """One row per program, in Markdown; sizes are one device's."""
    lines = [
        "| program | parameters | optimizer | other state | cache | activations | of GiB | "
        "TFLOPs | HBM GB | sent GB | FLOPs/B | s | MFU | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        memory = dict(report.memory)
        named = [memory.pop(kind, 0) for kind in ("parameters", "optimizer")]
        cache = memory.pop("cache", 0)
        rest = memory.pop("activations", memory.pop("the rest", 0))
        sizes = [*named, sum(memory.values()), cache, rest]
        cells = [report.program.name, *(f"{size / GIB:.2f}" for size in sizes)]
        cells.append(f"{report.total / GIB:.2f} of {report.chip.memory / GIB:.2f}")
        cost = report.cost
        if cost:
            cells += [f"{x:.3g}" for x in (
                cost.flops / 1e12, cost.hbm_bytes / 1e9, cost.moved / 1e9,
                cost.flops / max(cost.hbm_bytes, 1),
            )]
        else:
            cells += ["–"] * 4
        if cost and report.compute_seconds:
            best = max(report.compute_seconds, report.link_seconds)
            cells += [f"{best:.3g}", f"{report.mfu(best):.1%}"]
        else:
            cells += ["–"] * 2
        cells.append("fits" if report.fits else "too large")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
