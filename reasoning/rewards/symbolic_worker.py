"""The program of a symbolic worker: reads pairs, writes outcomes, one JSON line each.

    {"pair": ["2x", "x+x"], "cpu_seconds": 0.5}   ->   {"outcome": "right", "milliseconds": 1.9}

Started by `reasoning.rewards.symbolic` as a file of its own, so that it imports neither jax nor the
program it works for. It ends at the end of its input, which comes when its parent ends in any way;
a pair that takes too long ends it by the signal SIGPROF, memory over the limit by exit status 1.
"""

import json
import logging
import os
import resource
import signal
import sys
import time

# Read once before the first pair, so that its CPU time holds no work that is done only once.
WARM_UP = (
    (r"\frac{1}{2}+\sqrt{3}", r"\sqrt{3}+\frac{2}{4}"),
    (r"x^{2}-2x+1", r"(x-1)^2"),
    (r"(1,2]", r"(1,3]"),
    (r"\{1,\pi\}", r"\sin(x)"),
)


def judge(gold: str, answer: str) -> str:
    """Whether algebra finds the answer equal to gold: "right", "wrong" or "unparsed"."""
    from math_verify import LatexExtractionConfig, parse, verify

    parsed = []
    for text in (gold, answer):
        try:
            parsed.append(
                parse(
                    rf"\boxed{{{text}}}",
                    extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
                    fallback_mode="no_fallback",
                    parsing_timeout=None,  # else it sets an alarm by the wall clock
                    raise_on_error=True,
                )
            )
        except MemoryError:
            raise
        except Exception:  # of any kind: the parser of LaTeX raises what its parts raise
            return "unparsed"
    if not all(parsed):
        return "unparsed"
    try:
        # Exact answers are asked for: twelve decimals do not take 0.333333\pi for \pi/3.
        same = verify(
            *parsed, float_rounding=12, numeric_precision=30, timeout_seconds=None,
            raise_on_error=True,
        )  # fmt: skip
    except MemoryError:
        raise
    except Exception:
        return "unparsed"
    return "right" if same else "wrong"


def main() -> None:
    """Answer the pairs on standard input until it ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # a library that prints does not disturb the replies
    logging.disable()
    for gold, answer in WARM_UP:
        judge(gold, answer)
    memory = int(sys.argv[1]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is doing
    print(json.dumps({"outcome": "ready", "milliseconds": 0}), file=replies, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        started = time.perf_counter()
        signal.setitimer(signal.ITIMER_PROF, task["cpu_seconds"])
        try:
            outcome = judge(*task["pair"])
        except MemoryError:
            os._exit(1)
        signal.setitimer(signal.ITIMER_PROF, 0)
        taken = 1000 * (time.perf_counter() - started)
        reply = {"outcome": outcome, "milliseconds": taken}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
