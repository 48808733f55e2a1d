"""
The pytest plugin of jobcore: fixtures `jobs`, `job_clock` and `job_scripts`.

Where jobcore is installed, pytest loads this module at every start, by `libjobcore_pytest`.
The rest of jobcore is loaded with the first test that uses one of the fixtures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.testing import ManualClock, ScriptedExecutor

# For readable assertion errors: `ExecutorContract` contains tests, and `assert_job` asserts.
pytest.register_assert_rewrite("jobcore.testing")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `job_scripts`."""
    config.addinivalue_line(
        "markers", "job_scripts(*scripts): the scripts of the fixture `job_scripts`, in their order"
    )


@pytest.fixture
def jobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobManager]:
    """
    Return a `JobManager` with two slots on `tmp_path / "jobs.db"`.

    It uses the other fixtures of the test: `job_clock` as its clock, and `job_scripts` to
    run scripts instead of processes; the mark `job_scripts` is enough for that. Environment
    variables `JOBCORE_*` are hidden from the test and its jobs.

    After the test, the fixture waits until all jobs that can run have ended, and closes the
    manager. The test fails if anything is left: a running job, a process, a thread, a job
    directory, a descriptor, or a manager that was not closed. The failure names it, and it
    is removed.
    """
    from jobcore.testing.fixtures import isolated_manager  # noqa: PLC0415 - not at pytest's start

    wanted = set(request.fixturenames)
    if request.node.get_closest_marker("job_scripts"):
        wanted.add("job_scripts")  # else its scripts would be ignored, and processes start
    with isolated_manager(
        tmp_path / "jobs.db",
        clock=request.getfixturevalue("job_clock") if "job_clock" in wanted else None,
        scripts=request.getfixturevalue("job_scripts") if "job_scripts" in wanted else None,
    ) as manager:
        yield manager


@pytest.fixture
def job_clock() -> ManualClock:
    """Return a `ManualClock`, which stands still until the test moves it."""
    from jobcore.testing import ManualClock  # noqa: PLC0415 - not at pytest's start

    return ManualClock()


@pytest.fixture
def job_scripts(request: pytest.FixtureRequest) -> Iterator[ScriptedExecutor]:
    """
    Return a `ScriptedExecutor`, which runs jobs by scripts instead of processes.

    The scripts come from `@pytest.mark.job_scripts(Script(...), ...)`. Without this mark
    every job exits with 0 at once. If the test uses `job_clock`, the scripts use that clock.
    """
    from jobcore.testing import ScriptedExecutor  # noqa: PLC0415 - not at pytest's start

    marker = request.node.get_closest_marker("job_scripts")
    clock = request.getfixturevalue("job_clock") if "job_clock" in request.fixturenames else None
    with ScriptedExecutor(*(marker.args if marker else ()), clock=clock) as scripts:
        yield scripts
