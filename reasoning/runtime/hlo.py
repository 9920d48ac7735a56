"""HLO text, as XLA prints a compiled program: computations of instructions, and their loops.

    computations, entry = parse(compiled.as_text())
    for instruction in computations[entry].instructions.values(): ...
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result: its type, its shape, and whether it lies in HBM."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool

    @property
    def size(self) -> int:
        """Bytes, without the padding of the layout."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            bits = int(re.search(r"\d+", self.dtype)[0])  # f32, bf16, s4, f8e4m3fn, c64
        return math.prod(self.shape) * bits // 8

    @property
    def hbm_size(self) -> int:
        """Bytes if it lies in HBM, else 0."""
        return self.size if self.in_hbm else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    opcode: str
    result: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    text: str  # between the brackets of the opcode: a constant's value, a parameter's number
    is_root: bool


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions by name; the last one marked is its result."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(x for x in self.instructions.values() if x.is_root)


def _bracketed(text: str, start: int) -> int:
    """The place after the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"unbalanced brackets in {text[:80]!r}.")


def _arrays(text: str) -> tuple[Array, ...]:
    # Memory space 0 is HBM; S(1) is on the chip's vector memory, S(2) and above hold semaphores.
    return tuple(
        Array(dtype, tuple(map(int, filter(None, sizes.split(",")))), "S(" not in (layout or ""))
        for dtype, sizes, layout in _SHAPE.findall(text)
    )


def _instruction(line: str) -> Instruction | None:
    name, equals, rest = line.strip().partition(" = ")
    if not equals:
        return None
    is_root = name.startswith("ROOT ")
    end = _bracketed(rest, 0) if rest.startswith("(") else rest.index(" ")
    opcode, bracket, _ = rest[end:].strip().partition("(")
    if not bracket:
        return None
    start = rest.index("(", end)
    stop = _bracketed(rest, start)
    inside = rest[start + 1 : stop - 1]
    return Instruction(
        name=name.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode,
        result=_arrays(rest[:end]),
        operands=tuple(_NAME.findall(inside)),
        attributes=rest[stop:],
        text=inside,
        is_root=is_root,
    )


def _joined(text: str) -> Iterator[str]:
    """The lines of HLO text, each instruction in one: kernels describe themselves in several."""
    held = ""
    for line in text.splitlines():
        if held.startswith("  ") and line != "}" and not line.startswith("  "):
            held += line
            continue
        yield held
        held = line
    yield held


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of HLO text by name, and the name of the one where it starts.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in _joined(text):
        head = _HEAD.match(line)
        if head:
            current = Computation(head[2], {})
            computations[head[2]] = current
            entry = head[2] if head[1] else entry
        elif line == "}":
            current = None
        elif current is not None:
            instruction = _instruction(line)
            if instruction:
                current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text is no HLO module: no computation is marked ENTRY.")
    return computations, entry


def attribute(instruction: Instruction, name: str) -> str:
    """The name or number that an attribute is set to (KeyError: it has none of that name)."""
    found = re.search(rf"\b{name}=%?([\w.\-]+)", instruction.attributes)
    if not found:
        raise KeyError(name)
    return found[1]


def _source(name: str, computation: Computation) -> Instruction:
    """The instruction behind copies and changes of layout."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("bitcast", "copy", "reshape", "convert"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _constant(name: str, computation: Computation) -> int | None:
    found = _source(name, computation)
    return int(found.text) if found.opcode == "constant" and found.text.isdigit() else None


def _advance(index: int, body: Computation) -> int:
    """By how much a loop's body raises its counter, element `index` of what it carries."""
    step, at = 0, _source(body.root.operands[index], body)
    while at.opcode == "add":
        constants = [_constant(name, body) for name in at.operands]
        if constants.count(None) != 1:
            return 1
        step += next(x for x in constants if x is not None)
        at = _source(at.operands[constants.index(None)], body)
    return max(step, 1)  # a counter that is raised in a fusion is raised by 1


def trip_count(
    loop: Instruction, computation: Computation, computations: dict[str, Computation]
) -> int | None:
    """How often a while loop of this computation runs; None if that depends on data."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = computations[attribute(loop, "condition")]
    comparison = condition.root
    if comparison.opcode != "compare" or attribute(comparison, "direction") != "LT":
        return None
    limit = _constant(comparison.operands[1], condition)
    counter = _source(comparison.operands[0], condition)
    if limit is None or counter.opcode != "get-tuple-element":
        return None
    index = int(attribute(counter, "index"))
    # Loops that exchange while they multiply are unrolled: their counter goes up by 2.
    step = _advance(index, computations[attribute(loop, "body")])
    start = _source(loop.operands[0], computation)
    begin = _constant(start.operands[index], computation) if start.opcode == "tuple" else None
    return -(-(limit - (begin or 0)) // step)


def parameters(computation: Computation) -> dict[int, str]:
    """The names of a computation's parameters by their number."""
    instructions = computation.instructions.values()
    return {int(x.text): x.name for x in instructions if x.opcode == "parameter"}
