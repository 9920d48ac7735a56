"""How far a phase is, for whoever watches."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """A line before work that has no steps to tell of, and one after it with its seconds."""
    print(f"{what}: begins", flush=True)
    started = time.monotonic()
    yield
    print(f"{what}: took {time.monotonic() - started:.0f} s", flush=True)


@dataclasses.dataclass
class Progress:
    """A progress bar with tokens/s and time left; a plain line now and then off a terminal.

    Attributes:
      label: what is being done.
      total: steps to come.
      every: seconds between plain lines.
      done: steps that were done before.
    """

    label: str
    total: int
    every: float = 15.0
    done: int = 0

    def __post_init__(self) -> None:
        self._bar = tqdm(
            total=self.total, initial=self.done, desc=self.label,
            disable=not sys.stderr.isatty(), unit="step",
        )
        self._done, self._tokens = self.done, 0.0
        self._started = self._spoke = time.monotonic()

    def advance(self, tokens: float = 0.0, **shown: float) -> None:
        """One more step, of so many tokens if it counts any; `shown` are figures worth a look."""
        self._done += 1
        now = time.monotonic()
        first = self._done == self.done + 1
        if first:  # it compiled, which says nothing of the others
            self._started = now
        else:
            self._tokens += tokens
        figures = {name: f"{value:.3f}" for name, value in shown.items()}
        if self._tokens:
            figures["tokens/s"] = f"{self._tokens / max(now - self._started, 1e-9):,.0f}"
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update()
        if self._bar.disable and (now - self._spoke > self.every or self._done == self.total):
            self._spoke = now
            told = [f"{name} {value}" for name, value in figures.items()]
            if not first:
                pace = (now - self._started) / (self._done - self.done - 1)
                told.append(f"{pace * (self.total - self._done):.0f} s left")
            print("  ".join((f"{self.label}  {self._done}/{self.total}", *told)), flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
