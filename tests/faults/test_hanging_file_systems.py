"""A command on a file system that does not answer: it can be stopped, and holds up nothing else."""

from __future__ import annotations

import os
import threading

import pytest

from jobcore import JobManager, Reason, Status
from jobcore.engine.supervisor_pool import SupervisorPool
from jobcore.supervisor import termination
from tests.faults.test_unable_hosts import Forks
from tests.integration.supervision_harness import Host
from tests.mounts import in_own_mounts, mount_hanging
from tests.processes import PATIENCE, until

#: Of a command, what lies on the file system.
PLACES = ("program", "path", "cwd", "stdin")


def on(directory, place):
    """Return the argument vector and the fields of a request for a command that hangs there."""
    there = os.fsencode(directory) + b"/x"
    if place == "program":
        return [f"{directory}/x"], {}
    if place == "path":
        return ["true"], {"env": {"PATH": f"{directory}:/usr/bin:/bin"}}
    return ["true"], {"cwd": there} if place == "cwd" else {"stdin": ("file", there)}


@pytest.mark.parametrize("place", PLACES)
def test_time_out_and_stop_hold(tmp_path, place):
    """Neither the search for the program nor what comes before it holds up the supervisor."""
    assert in_own_mounts(end_hanging_commands, tmp_path, place) == ["timeout", "stopped"]


def end_hanging_commands(tmp_path, place):
    """Return how two commands end that hang: by their time-out, and by a stop."""
    (tmp_path / "there").mkdir()
    mount_hanging(tmp_path / "there", killable=True)
    argv, fields = on(tmp_path / "there", place)
    host = Host(tmp_path)
    late = host.run(argv, timeout=0.1, grace=0.1, **fields)
    stopped = host.start(argv, **fields)
    until(lambda: stopped.started)
    stopped.stop(0.1)
    reasons = [late.exit.reason, host.finish(stopped).reason]
    host.close()
    return reasons


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_process_that_no_signal_ends_is_recorded(tmp_path):
    """The job ends although the kernel holds its command, and its row has the pid."""
    reason, unreaped, status = in_own_mounts(end_unkillable_command, tmp_path)

    assert (reason, len(unreaped), status) == ("stopped", 1, None)


def end_unkillable_command(tmp_path):
    """Return the verdict on a command that no SIGKILL ends."""
    (tmp_path / "there").mkdir()
    held = threading.Event()
    device = mount_hanging(tmp_path / "there", killable=False, held=held)
    termination.KILL_FOR = 0.3  # seconds, in this child and in its supervisor, not ten
    host = Host(tmp_path)
    host.pool = SupervisorPool(Forks())
    run = host.start(["true"], cwd=os.fsencode(tmp_path / "there" / "x"))
    assert held.wait(PATIENCE)
    run.stop(0)
    host.finish(run)
    verdict = run.exit.reason, run.exit.unreaped, run.exit.wait_status
    os.close(device)  # or it would be left when this child ends
    host.close()
    return verdict


def test_other_jobs_of_the_manager_run(tmp_path, database):
    """A hanging job does not delay submitting, starting and stopping others."""
    outcomes = in_own_mounts(run_beside_hanging_jobs, tmp_path, database)

    assert outcomes == [(Status.STOPPED, Reason.TIMEOUT)] * 4 + [(Status.COMPLETE, Reason.EXITED)]


def run_beside_hanging_jobs(tmp_path, database):
    """Return how jobs end that hang in each place, and one that does not."""
    there = tmp_path / "there"
    there.mkdir()
    mount_hanging(there, killable=True)
    commands = {
        "program": {"argv": [there / "x"]},
        "path": {"argv": ["true"], "env": {"PATH": f"{there}:/usr/bin:/bin"}},
        "cwd": {"argv": ["true"], "cwd": there},
        "stdin": {"argv": ["true"], "stdin": there / "x"},
    }
    with JobManager(database, slots=2) as jobs:
        hanging = [
            jobs.submit(options.pop("argv"), timeout=0.3, grace=0.1, **options)
            for options in commands.values()
        ]
        good = jobs.submit(["true"])
        ended = [jobs.wait(job.id, 60) for job in (*hanging, good)]
    return [(job.status, job.reason) for job in ended]
