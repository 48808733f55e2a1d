"""
The pytest plugin of jobcore: fixtures `jobs`, `job_clock` and `job_scripts`.

pytest loads it at every start where jobcore is installed, by `libjobcore_pytest`.
The rest of jobcore is loaded by the first test that asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.testing import ManualClock, ScriptedExecutor

# Its asserts are for people to read: `ExecutorContract` has tests, `assert_job` is one.
pytest.register_assert_rewrite("jobcore.testing")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "job_scripts(*scripts): the scripts of the fixture `job_scripts`, in their order"
    )


@pytest.fixture
def jobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobManager]:
    """
    Return a `JobManager` with two slots on `tmp_path / "jobs.db"`.

    It goes by what else the test asks for: with `job_clock` that is its clock,
    with `job_scripts` no process is started. Variables `JOBCORE_*` of the
    environment that the tests run in are hidden from the test and its jobs.

    When the test is over it waits until all that can be run has ended, and is
    closed. The test fails where anything is left then, and says what: a job that
    runs on, a process, thread, job directory or descriptor, a manager that was
    not closed. Whatever it was, it is gone afterwards.
    """
    from jobcore.testing.fixtures import lend  # noqa: PLC0415 - see above

    wanted = request.fixturenames
    with lend(
        tmp_path / "jobs.db",
        clock=request.getfixturevalue("job_clock") if "job_clock" in wanted else None,
        scripts=request.getfixturevalue("job_scripts") if "job_scripts" in wanted else None,
    ) as manager:
        yield manager


@pytest.fixture
def job_clock() -> ManualClock:
    """Return a `ManualClock`: time stands still until the test moves it."""
    from jobcore.testing import ManualClock  # noqa: PLC0415 - see above

    return ManualClock()


@pytest.fixture
def job_scripts(request: pytest.FixtureRequest) -> Iterator[ScriptedExecutor]:
    """
    Return a `ScriptedExecutor`: jobs do what scripts say, without processes.

    The scripts are those of `@pytest.mark.job_scripts(Script(...), ...)`; without
    it every job exits with 0 at once. With `job_clock` they go by that clock.
    """
    from jobcore.testing import ScriptedExecutor  # noqa: PLC0415 - see above

    marker = request.node.get_closest_marker("job_scripts")
    clock = request.getfixturevalue("job_clock") if "job_clock" in request.fixturenames else None
    with ScriptedExecutor(*(marker.args if marker else ()), clock=clock) as scripts:
        yield scripts
