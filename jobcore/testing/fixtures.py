"""
A manager that a test gets from a fixture and must return with nothing left over.

The fixtures of `jobcore.pytest_plugin` are made of it.
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
from jobcore.testing.leak_check import Remains

if TYPE_CHECKING:
    from jobcore.testing.scripted_executor import ScriptedExecutor

#: Jobs at once under the manager of a test: more than one, on whatever machine.
SLOTS = 2
#: Seconds without any commit after which what still runs is taken to run for ever.
QUIET = 5.0
#: Seconds that the end of a test waits for its jobs, however busy they are.
PATIENCE = 30.0


@contextmanager
def lend(
    path: Path, *, clock: Clock | None = None, scripts: ScriptedExecutor | None = None
) -> Iterator[JobManager]:
    """
    Give a manager to a test, and see to it that the test leaves nothing.

    Args:
        path: Of its database.
        clock: Its clock. None: the machine's.
        scripts: What stands in for processes; it is closed at the end. None: nothing,
            jobs are processes.

    Raises:
        pytest.fail.Exception: Something was left; the message has a line for each thing.
    """
    remains = Remains()
    options: dict[str, Any] = {"slots": SLOTS, "clock": clock}
    if scripts is not None:
        options.update(executors=dict.fromkeys(default_executors(), scripts), launcher=scripts)
    with pytest.MonkeyPatch.context() as environment:
        # Of a job that the tests run in, or of a developer's shell.
        for name in [name for name in os.environ if name.startswith("JOBCORE_")]:
            environment.delenv(name)
        manager = JobManager(path, **options)
        try:
            yield manager
        finally:
            waited = scripts is None and _let_end(manager)
            manager.close()
            if scripts is not None:
                scripts.close()  # what it plays ends with the test, and leaves no process
            left = remains.clear(
                path, patience=0 if waited else QUIET, silently=scripts is not None
            )
    if left:
        pytest.fail("\n  ".join(["the test left something behind:", *left]), pytrace=False)


def _let_end(manager: JobManager) -> bool:
    """
    Wait until the manager has run all that it could, and no longer than anything comes of it.

    False: it can do nothing any more.

    Else it were a matter of chance whether a job that was queued last runs on
    when the test is over.
    """
    deadline = time.monotonic() + PATIENCE
    seen: int | None = None
    while time.monotonic() < deadline:
        try:
            manager.drain(QUIET)
            return True
        except WaitTimeout:
            before, seen = seen, manager._database.version()  # noqa: SLF001 - of any commit
            if before == seen:
                break
        except (Crashed, JobcoreError):
            return False  # the test closed it, dropped it, or took its file away
    return True
