"""Timing programs in turn, and what the machine could do at best.

    laps = run_in_turn([Program(ours, state, batch), Program(theirs, state, batch)], repeats=7)
    report("sft", "peer", tokens, laps[0])                          one line of a benchmark
"""

import dataclasses
import functools
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Operations of a compiled program that make the device wait for the host.
_HOST_CALLBACKS = re.compile(
    r'custom_call_target="[^"]*callback[^"]*"|\b(?:infeed|outfeed|send|recv)(?:-start)?\('
)

Row = dict[str, Any]


class Program:
    """A jitted function `(state, *inputs)` with what it is timed on: every lap starts alike."""

    def __init__(self, function: jax.stages.Wrapped, state: Any, *inputs: Any) -> None:
        self.function, self.state, self.inputs = function, state, inputs

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The function, compiled when it is first asked for."""
        return self.function.lower(self.state, *self.inputs).compile()

    def lap(self) -> float:
        """Seconds of one call; what it returns is kept as `result`."""
        # The function may consume its state.
        state = jax.block_until_ready(jax.tree.map(jnp.copy, self.state))
        started = time.perf_counter()
        self.result = jax.block_until_ready(self.compiled(state, *self.inputs))
        return time.perf_counter() - started

    @property
    def peak_bytes(self) -> int:
        """Memory of a call on one device: what it is given, returns and holds in between."""
        memory = self.compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return held + memory.temp_size_in_bytes - memory.alias_size_in_bytes

    def host_callbacks(self) -> int:
        """How often the compiled program turns to the host."""
        return len(_HOST_CALLBACKS.findall(self.compiled.as_text()))


def run_in_turn(programs: Sequence["Program | Limit"], repeats: int) -> list[list[float]]:
    """Laps of each program, the first call before the others; A, B, A, B, ... in time."""
    return list(zip(*([program.lap() for program in programs] for _ in range(1 + repeats))))


@dataclasses.dataclass(frozen=True)
class Limit:
    """What the machine does at best, timed in turn with programs: neighbours take their share.

    Attributes:
      share: what a row says of it, `share_of_peak` or `share_of_bandwidth`.
      amount: floating-point operations, or bytes read, of one call of `function`.
      function, inputs: the call.
    """

    share: str
    amount: float
    function: jax.stages.Wrapped
    inputs: tuple[jax.Array, ...]

    def lap(self) -> float:
        """Seconds of the best of four calls."""
        laps = []
        for _ in range(4):
            started = time.perf_counter()
            jax.block_until_ready(self.function(*self.inputs))
            laps.append(time.perf_counter() - started)
        return min(laps)


def matmul_limit(dtype: str) -> Limit:
    """Products of square matrices of this type, one after another in one program.

    One keeps a CPU busy for long; on accelerators the call itself would weigh, so they get 16, and
    larger ones.
    """
    size, count = (2048, 1) if jax.default_backend() == "cpu" else (8192, 16)
    matrix = jnp.full((size, size), 1 / size, dtype)  # its powers neither grow nor vanish

    def power(left: jax.Array, right: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, count, lambda _, product: product @ right, left)

    return Limit("share_of_peak", count * 2 * size**3, jax.jit(power), (matrix, matrix))


def bandwidth_limit() -> Limit:
    """The product of a vector and a matrix that is too large for any cache.

    It is what decoding one sequence does, without all else: every weight is read once.
    """
    rows, columns = 2**15 if jax.default_backend() == "cpu" else 2**18, 4096
    matrix = jnp.ones((rows, columns))
    inputs = matrix, jnp.ones(columns)
    return Limit("share_of_bandwidth", matrix.nbytes, jax.jit(jnp.matmul), inputs)


def report(
    what: str,
    size: str,
    tokens: float,
    laps: Sequence[float],
    limit: tuple[Limit, Sequence[float], float] | None = None,
    **more: Any,
) -> Row:
    """One measurement: `tokens` in a lap, `laps` with the first call.

    Args:
      limit: of the machine, its laps in the same rounds, and what a token costs of it. The row
        then tells the median of the rounds' shares.
    """
    first, *later = laps
    median = statistics.median(later)
    if limit is not None:
        of, at_best, cost = limit
        shares = [
            cost * tokens / lap / (of.amount / best)
            for lap, best in zip(later, at_best[1:], strict=True)
        ]
        more[of.share] = round(statistics.median(shares), 6)
    return {
        "what": what,
        "size": size,
        "tokens": int(tokens),
        "tokens_per_s": round(tokens / median),
        "median_s": round(median, 4),
        "laps": [round(lap, 4) for lap in later],
        "first_s": round(first, 4),
        "jax": jax.__version__,
        **more,
    }
