"""Timing programs in turn, and what the machine could do at best.

    laps = run_in_turn([Program(ours, state, batch), Program(theirs, state, batch)], repeats=7)
    report("sft", "peer", tokens, laps[0])                          one line of a benchmark
"""

import functools
import os
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


def run_in_turn(programs: Sequence[Program], repeats: int) -> list[list[float]]:
    """Laps of each program, the first call before the others; A, B, A, B, ... in time."""
    return list(zip(*([program.lap() for program in programs] for _ in range(1 + repeats))))


def report(
    what: str,
    size: str,
    tokens: float,
    laps: Sequence[float],
    flops_per_token: float | None = None,
    bytes_per_token: float | None = None,
    dtype: str = "float32",
    **more: Any,
) -> Row:
    """One measurement: `tokens` in a lap, `laps` with the first call.

    Where it is known what a token costs, `share_of_peak` is how much is reached of `matmul_peak`
    in `dtype`, and `share_of_bandwidth` of `memory_bandwidth`.
    """
    first, *later = laps
    median = statistics.median(later)
    if flops_per_token is not None:
        share = flops_per_token * tokens / median / matmul_peak(dtype=dtype)
        more["share_of_peak"] = round(share, 6)
    if bytes_per_token is not None:
        share = bytes_per_token * tokens / median / memory_bandwidth()
        more["share_of_bandwidth"] = round(share, 6)
    return {
        "what": what,
        "size": size,
        "tokens": int(tokens),
        "tokens_per_s": round(tokens / median),
        "median_s": round(median, 4),
        "laps": [round(lap, 4) for lap in later],
        "first_s": round(first, 2),
        "jax": jax.__version__,
        "load1": round(os.getloadavg()[0], 2),
        **more,
    }


@functools.cache
def matmul_peak(size: int = 2048, dtype: str = "float32") -> float:
    """FLOP/s of the best of several products of two matrices of this size."""
    left = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    return 2 * size**3 / _best(jax.jit(jnp.matmul), left, left)


@functools.cache
def memory_bandwidth(num_bytes: int = 2**29) -> float:
    """Bytes/s at best of a product of a matrix, too large for any cache, and a vector.

    It is what decoding one sequence does, without all else: every weight is read once.
    """
    columns = 4096
    matrix = jnp.ones((num_bytes // 4 // columns, columns))
    return matrix.nbytes / _best(jax.jit(jnp.matmul), matrix, jnp.ones(columns))


def _best(function: jax.stages.Wrapped, *arguments: jax.Array) -> float:
    """Seconds of the best of several calls after the first."""
    laps = []
    for _ in range(6):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        laps.append(time.perf_counter() - started)
    return min(laps[1:])
