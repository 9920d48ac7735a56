"""What a compiled program costs a device, read from its optimised HLO.

    cost = analyse(compiled.as_text())
    cost.flops, cost.hbm_bytes, cost.cycles, cost.collectives

XLA's own `cost_analysis` counts the body of a loop once. Here every instruction counts as often as
its loops run: by the trip count that the compiler wrote down, or else by the limit that the loop's
condition compares its counter with. A loop whose end depends on data has neither
and counts `unknown_trips` times, so a program's cost is linear in that number. Of the branches of
a conditional the costliest counts.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from reasoning.runtime.hlo import (
    Array,
    Computation,
    Instruction,
    attribute,
    parameters,
    parse,
    trip_count,
)

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)
# Instructions that move nothing themselves.
_FREE = frozenset((
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier", "iota",
))
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      kind: one of COLLECTIVES.
      size: bytes on one device: the whole result of a gather, the operand of the others.
      moved: bytes that one device sends, on a ring: (n-1)/n of `size`, twice that in an all-reduce.
      devices: n, that take part in one exchange.
      count: how often the program does it.
      shape: of the array, as HLO writes it.
      source: the operation of the traced program that it belongs to, "" if unknown.
    """

    kind: str
    size: int
    moved: float
    devices: int
    count: float
    shape: str
    source: str


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device does in one call.

    Attributes:
      flops: of matrix products (dots and convolutions), a multiplication and an addition each.
      hbm_bytes: read from and written to HBM, as the sizes of what instructions take and give.
      cycles: the compiler's estimate of the instructions that it has one for; 0 without any.
      collectives: in the order of the program.
    """

    flops: float
    hbm_bytes: float
    cycles: float
    collectives: tuple[Collective, ...]

    @property
    def moved(self) -> float:
        """Bytes that a device sends in all its collectives."""
        return sum(x.moved * x.count for x in self.collectives)

    def divided(self, parts: int) -> "Cost":
        """An equal part of it."""
        return Cost(
            self.flops / parts,
            self.hbm_bytes / parts,
            self.cycles / parts,
            tuple(dataclasses.replace(x, count=x.count / parts) for x in self.collectives),
        )

    def plus(self, other: "Cost") -> "Cost":
        """The sum of two costs."""
        return Cost(
            self.flops + other.flops,
            self.hbm_bytes + other.hbm_bytes,
            self.cycles + other.cycles,
            self.collectives + other.collectives,
        )

    def minus(self, other: "Cost") -> "Cost":
        """The difference of two costs of one program; a collective may then count 0 times."""
        pairs = zip(self.collectives, other.collectives, strict=True)
        return Cost(
            self.flops - other.flops,
            self.hbm_bytes - other.hbm_bytes,
            self.cycles - other.cycles,
            tuple(dataclasses.replace(a, count=a.count - b.count) for a, b in pairs),
        )


def _valid_positions(size: int, out: int, window: dict[str, int]) -> int:
    """Pairs of an output place and a kernel place that meet an input along one axis."""
    stride, low = window.get("stride", 1), window.get("low", 0)
    base, spread = window.get("lhs_dilate", 1), window.get("rhs_dilate", 1)
    reach = (size - 1) * base + 1
    count = 0
    for kernel in range(window["size"]):
        places = (place * stride - low + kernel * spread for place in range(out))
        count += sum(1 for x in places if 0 <= x < reach and x % base == 0)
    return count


def _windows(attributes: str, axes: int) -> list[dict[str, int]]:
    """The window of each spatial axis, from `window={size=2x3 pad=1_1x0_0 stride=1x2}`."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    windows: list[dict[str, int]] = [{"size": 1} for _ in range(axes)]
    for field in found[1].split() if found else ():
        name, _, values = field.partition("=")
        for window, value in zip(windows, values.split("x")):
            if name == "pad":
                window["low"] = int(value.split("_")[0])
            else:
                window[name] = int(value)
    return windows


def matmul_flops(product: Instruction, instructions: dict[str, Instruction]) -> int:
    """FLOPs of a dot or a convolution, 0 of anything else; as XLA's cost analysis counts them."""
    if product.opcode == "dot":
        left = instructions[product.operands[0]].result[0]
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
        axes = map(int, filter(None, summed[1].split(","))) if summed else ()
        return 2 * math.prod(product.result[0].shape) * math.prod(left.shape[i] for i in axes)
    if product.opcode != "convolution":
        return 0
    left, right = (instructions[name].result[0].shape for name in product.operands[:2])
    out = product.result[0].shape
    inputs, kernel, output = re.search(
        r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes
    ).groups()
    spatial = sorted(label for label in inputs if label.isdigit())
    windows = _windows(product.attributes, len(spatial))
    places = [
        _valid_positions(left[inputs.index(axis)], out[output.index(axis)], window)
        for axis, window in zip(spatial, windows, strict=True)
    ]
    batch, features = out[output.index("b")], out[output.index("f")]
    return 2 * batch * features * right[kernel.index("i")] * math.prod(places)


def _group_size(attributes: str) -> int:
    """How many devices exchange with each other.

    Raises:
      ValueError: the groups are written in a way that is not known.
    """
    if "source_target_pairs=" in attributes:
        return 2
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return listed[1].count(",") + 1
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes)
    if counted:
        return int(counted[1])
    # mesh['a'=4,'b'=2] {'a'}, and between the two perhaps device_ids=([2,4]T(1,0))
    named = re.search(
        r"replica_groups=@?\w*\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}", attributes
    )
    if not named:
        raise ValueError(f"replica_groups: cannot be read in {attributes[:120]!r}.")
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))


def collective(
    exchange: Instruction, computation: Computation, count: float
) -> Collective | None:
    """The collective that an instruction starts, None if it starts none."""
    kind = exchange.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    arrays = exchange.result
    if exchange.opcode.endswith("-start") and kind != "all-reduce":  # (operands, results, ...)
        arrays = arrays[1:2]
    if kind == "reduce-scatter":
        arrays = computation.instructions[exchange.operands[0]].result
    # The TPU's compiler writes a reduce-scatter as an all-reduce and a slice in a fusion.
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    devices, size = _group_size(exchange.attributes), sum(x.size for x in arrays)
    share = {"all-reduce": 2 * (devices - 1) / devices, "collective-permute": 1.0}
    source = re.search(r'op_name="([^"]*)"', exchange.attributes)
    return Collective(
        kind=kind,
        size=size,
        moved=size * share.get(kind, (devices - 1) / devices),
        devices=devices,
        count=count,
        shape=" ".join(f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in arrays),
        source=source[1] if source else "",
    )


def _read(
    name: str, whole: int, computation: Computation, computations: dict[str, Computation]
) -> int:
    """Bytes that a fusion reads of a parameter: of one that is only sliced, the slices."""
    total = 0
    for user in computation.instructions.values():
        if name not in user.operands:
            continue
        first = user.operands[0] == name
        if user.opcode == "bitcast":
            total += _read(user.name, whole, computation, computations)
        elif user.opcode == "fusion":
            called = computations[attribute(user, "calls")]
            inner = parameters(called)[user.operands.index(name)]
            total += _read(inner, whole, called, computations)
        elif user.opcode in ("dynamic-slice", "slice", "gather") and first:
            total += sum(x.size for x in user.result)
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # updated in place
        else:
            return whole
    return min(total, whole)


def _written(array: Array, name: str, computation: Computation) -> int:
    """Bytes that a fusion writes of a result: of an array that is updated in place, the update."""
    part = computation.instructions[name]
    while part.opcode == "bitcast":
        part = computation.instructions[part.operands[0]]
    if part.opcode != "dynamic-update-slice":
        return array.hbm_size
    update = computation.instructions[part.operands[1]]
    return min(array.hbm_size, sum(x.size for x in update.result))


def _fusion_bytes(
    fusion: Instruction, sizes: list[int], computations: dict[str, Computation]
) -> int:
    """Bytes that a fusion reads and writes, of operands of these sizes."""
    fused = computations[attribute(fusion, "calls")]
    inside = {x.opcode.removesuffix("-start") for x in fused.instructions.values()}
    taken, given = set(), set()
    if inside & set(COLLECTIVES):
        if not inside & {"convolution", "dot", "fusion"}:
            return 0  # a step of a collective, whose buffers count where it is found
        # Beside a matrix product the collective's buffers are results that alias operands.
        aliases = re.findall(r"\{(\d*)\}: \((\d+),", fusion.attributes)
        given = {int(result or 0) for result, _ in aliases}
        taken = {int(operand) for _, operand in aliases}
    numbered = parameters(fused)
    read = sum(
        _read(numbered[i], size, fused, computations)
        for i, size in enumerate(sizes) if size and i not in taken
    )
    results = fused.root.operands if fused.root.opcode == "tuple" else (fused.root.name,)
    pairs = enumerate(zip(fusion.result, results))
    return read + sum(_written(x, name, fused) for i, (x, name) in pairs if i not in given)


def _operand_bytes(instruction: Instruction, computation: Computation) -> list[int]:
    operands = [computation.instructions[name] for name in instruction.operands]
    return [sum(x.hbm_size for x in operand.result) for operand in operands]


def _exchanged_bytes(exchange: Instruction, computation: Computation, found: Collective) -> int:
    """Bytes that a collective reads from and writes to its own device's HBM."""
    start = exchange.opcode.endswith("-start") and found.kind != "all-reduce"
    written = sum(x.hbm_size for x in (exchange.result[1:2] if start else exchange.result))
    if found.kind == "reduce-scatter" and exchange.opcode.startswith("all-reduce"):
        written //= found.devices
    return written + sum(_operand_bytes(exchange, computation))


def hbm_bytes(
    instruction: Instruction, computation: Computation, computations: dict[str, Computation]
) -> int:
    """Bytes that an instruction outside of fusions reads from and writes to HBM.

    Those of a collective are left to where it is counted, once for all its steps.
    """
    opcode = instruction.opcode
    kind = opcode.removesuffix("-start")
    if opcode in _FREE or opcode.endswith("-done") or kind in COLLECTIVES or kind == "async":
        return 0
    sizes = _operand_bytes(instruction, computation)
    if opcode == "fusion":
        return _fusion_bytes(instruction, sizes, computations)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * sum(x.hbm_size for x in instruction.result)
    if opcode == "dynamic-update-slice":
        return 2 * sizes[1]
    result = instruction.result[:1] if opcode.endswith("-start") else instruction.result
    return sum(sizes) + sum(x.hbm_size for x in result)


def analyse(text: str, unknown_trips: float = 1) -> Cost:
    """The cost of one call on one device, every loop as often as it runs.

    Args:
      text: `compiled.as_text()`, HLO after all optimisations; it is one device's program.
      unknown_trips: how often a loop runs whose end depends on data.

    Raises:
      ValueError: the text is no HLO module.
    """
    computations, entry = parse(text)

    def inside(name: str) -> Iterator[tuple[Instruction, Computation]]:
        """The instructions of a fusion, and of the fusions in it."""
        for x in computations[name].instructions.values():
            yield x, computations[name]
            if x.opcode == "fusion" or x.opcode.startswith("async-start"):
                yield from inside(attribute(x, "calls"))

    def visit(name: str, times: float, seen: frozenset[str] = frozenset()) -> Cost:
        flops = moved = cycles = 0.0
        exchanges: list[Collective] = []
        computation, channels, called = computations[name], set(seen), []
        for x in computation.instructions.values():
            if x.opcode == "while":
                trips = trip_count(x, computation, computations)
                times_inside = times * (unknown_trips if trips is None else trips)
                called.append(([attribute(x, "body")], times_inside))
                continue
            if x.opcode in ("call", "conditional"):
                called.append((_called(x), times))
                continue
            moved += times * hbm_bytes(x, computation, computations)
            estimate = re.search(r'"estimated_cycles":"(\d+)"', x.attributes)
            cycles += times * int(estimate[1]) if estimate else 0.0
            fused = x.opcode == "fusion" or x.opcode.startswith("async-start")
            parts = inside(attribute(x, "calls")) if fused else ()
            for part, of in ((x, computation), *parts):
                flops += times * matmul_flops(part, of.instructions)
                found = collective(part, of, times)
                # The steps of one collective, in fusions and in loops within, share a channel.
                channel = re.search(r"channel_id=(\d+)", part.attributes)
                if found is None or (channel and channel[1] in channels):
                    continue
                if channel:
                    channels.add(channel[1])
                exchanges.append(found)
                moved += times * _exchanged_bytes(part, of, found)
        total = Cost(flops, moved, cycles, tuple(exchanges))
        for names, times_inside in called:
            costs = [visit(each, times_inside, frozenset(channels)) for each in names]
            total = total.plus(max(costs, key=lambda cost: (cost.flops, cost.hbm_bytes)))
        return total

    return visit(entry, 1.0)


def _called(instruction: Instruction) -> list[str]:
    """What a call calls, or the branches of a conditional."""
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if branches:
        return _NAME.findall(branches[1])
    chosen = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes)
    return chosen or _CALLED.findall(instruction.attributes)
