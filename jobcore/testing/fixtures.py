"""
Gives a manager to a test, and checks that the test leaves nothing behind.

The fixtures of `jobcore.pytest_plugin` use it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobcore.clock import Clock
from jobcore.engine.executors import default_executors
from jobcore.errors import JobcoreError, WaitTimeout
from jobcore.manager import JobManager
from jobcore.testing.crash import Crashed
from jobcore.testing.leak_check import LeakCheck
from jobcore.testing.parts import parts

if TYPE_CHECKING:
    from jobcore.testing.scripted_executor import ScriptedExecutor

#: Slots of a test's manager: more than one on every machine.
SLOTS = 2
#: Seconds without any commit after which a running job is assumed to run for ever.
IDLE_PATIENCE = 5.0
#: Seconds that the end of a test waits for its jobs at most.
PATIENCE = 30.0


@contextmanager
def isolated_manager(
    path: Path, *, clock: Clock | None = None, scripts: ScriptedExecutor | None = None
) -> Iterator[JobManager]:
    """
    Give a manager to a test, then close it and check that the test left nothing behind.

    Args:
        path: The path of its database.
        clock: The manager's clock; None: the machine's.
        scripts: The executor that replaces processes; it is closed at the end. None: jobs
            are processes.

    Raises:
        pytest.fail.Exception: Something was left. The message has a line for each thing.
    """
    leaks = LeakCheck()
    options: dict[str, Any] = {"slots": SLOTS, "clock": clock}
    if scripts is not None:
        options.update(executors=dict.fromkeys(default_executors(), scripts), launcher=scripts)
    with pytest.MonkeyPatch.context() as environment:
        # They come from a developer's shell, or from a job in which the tests run.
        for name in [name for name in os.environ if name.startswith("JOBCORE_")]:
            environment.delenv(name)
        manager = JobManager(path, **options)
        try:
            yield manager
        finally:
            waited = scripts is None and _wait_until_idle(manager)
            manager.close()
            if scripts is not None:
                scripts.close()  # running scripts end with the test
            patience = 0 if waited else IDLE_PATIENCE
            left = leaks.clear(path, patience=patience, silently=scripts is not None)
    if left:
        pytest.fail("\n  ".join(["the test left something behind:", *left]), pytrace=False)


def _wait_until_idle(manager: JobManager) -> bool:
    """
    Wait until the manager has run all jobs that it can, or until there is no progress.

    Without this wait, it would depend on chance whether the last queued job still runs when
    the test is over.

    Returns:
        False: the manager cannot run jobs any more.
    """
    deadline = time.monotonic() + PATIENCE
    seen: int | None = None
    while time.monotonic() < deadline:
        try:
            manager.drain(IDLE_PATIENCE)
            return True
        except WaitTimeout:
            before, seen = seen, parts(manager).database.version()  # to notice any commit
            if before == seen:
                break
        except (Crashed, JobcoreError):
            return False  # the test closed it, crashed it, or removed its file
    return True
