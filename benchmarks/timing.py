"""Timing: samples of one thing, their median and p95, and the machine they are from."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from jobcore import __file__ as _installed_at


@dataclass
class Series:
    """
    How long something took, again and again.

    Attributes:
        what: What was measured.
        count: Things done in each sample; None: the time itself is the result.
        of: What these things are, for the unit of the rate.
        seconds: The samples.
    """

    what: str
    count: int | None = None
    of: str = ""
    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def sample(self) -> Iterator[None]:
        """Take the time of a block."""
        begun = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - begun)

    @property
    def unit(self) -> str:
        """The unit of `median` and `p95`."""
        return "ms" if self.count is None else f"{self.of}/s"

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return self._result(statistics.median(self.seconds))

    @property
    def p95(self) -> float:
        """What 19 of 20 samples did not exceed in time: of a rate it is the low end."""
        return self._result(sorted(self.seconds)[max(0, -(-len(self.seconds) * 95 // 100) - 1)])

    def _result(self, seconds: float) -> float:
        return seconds * 1000 if self.count is None else self.count / seconds


@dataclass
class Ratio:
    """One median beside another, both from this very run."""

    what: str
    value: float


def wait_until(condition: Callable[[], bool], patience: float = 120.0) -> None:
    """Return when `condition` holds; what is measured comes after."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"a benchmark waited for more than {patience} s")
        time.sleep(0.005)


def environment() -> str:
    """Return what the numbers depend on, in a line."""
    return (
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {len(os.sched_getaffinity(0))} cores, "
        f"jobcore in {os.path.dirname(_installed_at)}"
    )
