"""Timing: samples of one thing, what they are compared with, and the machine they are from."""

from __future__ import annotations

import importlib.util
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from jobcore import __file__ as _installed_at


@dataclass(frozen=True)
class Goal:
    """
    What a series should reach.

    Attributes:
        bound: For rates the least, for everything else the most.
        of: Which figure is meant; `ratio`: the median divided by that of `Series.beside`.
    """

    bound: float
    of: Literal["median", "p95", "ratio"] = "median"


@dataclass
class Series:
    """
    One thing, measured again and again.

    Attributes:
        what: What was measured.
        unit: Of the values. More is better where it ends in `/s`; otherwise less is.
        goal: What it should reach; None: it is there for comparison.
        beside: The peer or floor of its ratio.
        peer: Whether this is another program, or a floor.
        of: Which of jobcore's series this peer is compared with; None: the first of its row.
        missing: How to install what this needs, if that is missing; then there are no values.
        values: The samples.
    """

    what: str
    unit: str = "ms"
    goal: Goal | None = None
    beside: Series | None = None
    peer: bool = False
    of: Series | None = None
    missing: str = ""
    values: list[float] = field(default_factory=list)

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.unit.endswith("/s")

    @contextmanager
    def sample(self, count: float = 1) -> Iterator[None]:
        """Time a block that does so many things: the rate, or the milliseconds of each."""
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        self.values.append(count / seconds if self.is_rate else seconds * 1000 / count)

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """What 19 of 20 samples reach: the high end of a time, the low end of a rate."""
        return self.quantile(0.95)

    def quantile(self, share: float) -> float:
        """Return what this share of the samples reaches."""
        ordered = sorted(self.values, reverse=self.is_rate)
        return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]

    @property
    def ratio(self) -> float | None:
        """The median divided by that of `beside`; None: there is nothing to compare with."""
        if self.beside is None or not self.beside.values or self.beside.median <= 0:
            return None
        return self.median / self.beside.median

    @property
    def judged(self) -> float | None:
        """The figure that the goal is about."""
        if self.goal is None or not self.values:
            return None
        figures = {"median": self.median, "p95": self.p95, "ratio": self.ratio}
        return figures[self.goal.of]

    @property
    def success(self) -> float | None:
        """How many times as good as the goal; from 1 on it is met. None: that is not known."""
        judged = self.judged
        if self.goal is None or judged is None:
            return None
        if self.is_rate:
            return judged / self.goal.bound
        return self.goal.bound / max(judged, 1e-9)


def environment(folder: str | None = None) -> str:
    """Return what the numbers depend on, in a line; `folder` is where the databases are."""
    return (
        f"Linux {platform.release()}, {_processor()}, {len(os.sched_getaffinity(0))} cores, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{'with' if importlib.util.find_spec('isal') else 'without'} ISA-L, "
        f"{_file_system(folder or tempfile.gettempdir())}, load {os.getloadavg()[0]:.2f}, "
        f"jobcore in {os.path.dirname(_installed_at)}"
    )


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in {"model name", "Model"}:
                return " ".join(value.split())
    return platform.machine()


def _file_system(folder: str) -> str:
    """Return the type of the file system that `folder` is on."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as mounts:
        for mount in mounts:
            before, _, after = mount.partition(" - ")
            if before.split()[2] == wanted:
                return after.split()[0]
    return "an unknown file system"


def wait_until(condition: Callable[[], bool], patience: float = 120.0) -> None:
    """Return when `condition` holds, looking once a millisecond."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"a benchmark waited for more than {patience} s")
        time.sleep(0.001)
