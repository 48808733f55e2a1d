"""Supervisors that were stopped by a signal, whoever sent it: stops and time-outs hold."""

from __future__ import annotations

import signal

import pytest

from jobcore import JobManager, Reason, Status, tuning
from jobcore.engine import launcher, procfs
from jobcore.engine.supervisor_pool import SupervisorPool
from jobcore.testing import ManualClock
from jobcore.testing.parts import parts
from tests.faults.hosts import host, submit_and_serve
from tests.faults.test_supervisor_killed import supervisor_of
from tests.processes import Child, debug, open_gate, state, stop, until
from tests.programs import HELD, SLEEPS

STOPS_ITS_SUPERVISOR = "kill -STOP $PPID; "


def idle_supervisor(jobs):
    """Return the pid of a supervisor that has run a job, and waits for the next one."""
    jobs.wait(jobs.submit(["true"]).id, 30)
    pool = parts(jobs).pool
    return until(lambda: [one.pid for one in pool.supervisors if one.ready], "it is idle")[0]


def test_job_that_stops_its_supervisor_is_timed_out(running_jobs):
    """`kill -STOP $PPID` does not outwit the time-out."""
    job = running_jobs.submit(
        ["sh", "-c", STOPS_ITS_SUPERVISOR + "exec sleep 300"], timeout=0.5, grace=0.1
    )
    job = running_jobs.wait(job.id, 30)

    assert (job.status, job.reason) == (Status.STOPPED, Reason.TIMEOUT)


def test_job_that_stops_its_supervisor_over_and_over_is_timed_out(running_jobs):
    """Each time it is woken it has a moment, which is enough to end the job."""
    job = running_jobs.submit(
        ["sh", "-c", f"while :; do {STOPS_ITS_SUPERVISOR} sleep 0.05; done"], timeout=0.5, grace=0.1
    )
    job = running_jobs.wait(job.id, 60)

    assert (job.status, job.reason) == (Status.STOPPED, Reason.TIMEOUT)


def test_job_that_stops_its_supervisor_and_ends_has_its_end(running_jobs):
    """A job that sends SIGSTOP to its own supervisor still gets its exit code and last line."""
    job = running_jobs.submit(["sh", "-c", STOPS_ITS_SUPERVISOR + "echo last; exit 7"])
    job = running_jobs.wait(job.id, 30)

    assert (job.status, job.exit_code, job.reason) == (Status.ERROR, 7, Reason.EXITED)
    assert [line.text for line in running_jobs.logs(job.id)] == ["last"]


@pytest.mark.parametrize(
    ("argv", "status"),
    [(["true"], Status.COMPLETE), (SLEEPS, Status.STOPPED)],
    ids=["short", "timed out"],
)
def test_job_of_a_supervisor_that_was_stopped_while_idle_runs(running_jobs, argv, status):
    """A job is given to it all the same; it is woken, and the time-out holds."""
    stop(idle_supervisor(running_jobs))
    job = running_jobs.submit(argv, timeout=1, grace=0.1)

    assert running_jobs.wait(job.id, 30).status is status


def test_stopped_supervisor_of_a_dead_host_is_woken(database, gate):
    """The next manager wakes it, and the job has its true end."""
    held = [["sh", "-c", HELD], {"env": {"GATE": gate}}]
    with (
        host(submit_and_serve, database, *held) as killed,
        JobManager(database, slots=0) as jobs,
    ):
        (job,) = jobs.list_jobs() if killed.hear() else []
        assert next(jobs.follow(job.id, timeout=30)).text == "ready"
        supervisor, _ = supervisor_of(database, job.id)
        stop(supervisor)
        killed.kill()
        open_gate(gate)
        with JobManager(database, slots=1) as next_one:
            parts(next_one).dispatcher.start()
            job = next_one.wait(job.id, 30)

    assert (job.status, job.exit_code, job.reason) == (Status.ERROR, 4, Reason.EXITED)


@pytest.mark.parametrize("ask", [JobManager.stop_job, JobManager.wait])
def test_waiting_wakes_a_stopped_supervisor_without_a_worker(database, gate, ask):
    """A stop, or a wait, is enough: `jobcore stop` and `jobcore wait` need no `jobcore work`."""
    with JobManager(database, slots=1) as running:
        job = running.submit(["sh", "-c", HELD], env={"GATE": gate}, grace=0.1)
        assert next(running.follow(job.id, timeout=30)).text == "ready"
    supervisor, _ = supervisor_of(database, job.id)
    stop(supervisor)
    with JobManager(database, slots=0) as jobs:
        if ask is JobManager.wait:
            open_gate(gate)
        else:
            jobs.stop_job(job.id)
        job = jobs.wait(job.id, 30)

    assert job.reason is (Reason.EXITED if ask is JobManager.wait else Reason.STOPPED)


@pytest.mark.parametrize("stub", launcher.STUBS[:3:2], ids=["present", "former"])
def test_supervisor_stopped_while_idle_whose_host_died_is_woken(database, monkeypatch, stub):
    """It alone has the job, which nothing but its own wakening can go on with."""
    monkeypatch.setattr(tuning, "RECORD_PATIENCE", 0.2)
    with host(send_to_a_stopped_supervisor, database, stub) as killed:
        job_id = killed.hear()
        killed.kill()
    with JobManager(database, slots=0) as jobs:
        job = jobs.wait(job_id, 30)

    assert (job.status, job.reason) == (Status.COMPLETE, Reason.EXITED)


def send_to_a_stopped_supervisor(say, database, stub):
    """Have a job on its way to a supervisor that does not read."""
    launcher.STUB = stub
    SupervisorPool.wake_stopped = lambda _: None
    with JobManager(database, slots=1) as jobs:
        stop(idle_supervisor(jobs))
        job = jobs.submit(["true"])
        until(lambda: jobs.get_job(job.id).status is Status.RUNNING, "it is claimed")
        until(lambda: not parts(jobs).pool.ready, "it is sent")
        say(str(job.id))
        signal.pause()


def test_supervisor_in_a_debugger_is_left_alone(database):
    """However long its job is overdue it is not signalled, and goes on when it is let go."""
    clock = ManualClock()
    with (
        JobManager(database, slots=1, on_exit="stop") as running,
        JobManager(database, slots=0, clock=clock) as jobs,
    ):
        job = running.submit(SLEEPS)
        assert next(running.follow(job.id, timeout=30)).text == "ready"
        supervisor, _ = supervisor_of(database, job.id)
        debugger = Child(debug, supervisor, held=True)
        debugger.go()
        until(lambda: state(supervisor) == "t" or state(debugger.pid) in "ZX", "it is attached")
        if state(supervisor) != "t":
            debugger.kill()
            pytest.skip("no process may be debugged here")
        jobs.stop_job(job.id, grace=0)
        for _ in range(60):
            jobs.recover()
            clock.advance(2)
        held = state(supervisor)
        debugger.kill()
        job = running.wait(job.id, 30)

    assert held == "t"
    assert (job.status, job.reason) == (Status.STOPPED, Reason.STOPPED)


@pytest.mark.parametrize(
    ("options", "status"),
    [({"timeout": 5, "grace": 1}, Status.ERROR), ({"grace": 1}, Status.STOPPED)],
    ids=["time-out", "stop"],
)
def test_supervisor_that_never_takes_its_job_is_replaced(database, monkeypatch, options, status):
    """Not before half a minute after it should have ended; the next job runs."""
    monkeypatch.setattr(SupervisorPool, "wake_stopped", lambda _: None)
    monkeypatch.setattr(procfs, "is_stopped", lambda _: False)
    clock = ManualClock()
    with JobManager(database, slots=1, clock=clock) as jobs:
        supervisor = idle_supervisor(jobs)
        stop(supervisor)
        monkeypatch.setattr(signal, "SIGCONT", signal.SIGWINCH)  # nothing wakes it
        job = jobs.submit(["true"], **options)
        until(lambda: jobs.get_job(job.id).status is Status.RUNNING, "it is claimed")
        if "timeout" not in options:
            jobs.stop_job(job.id)
        clock.advance(6 + 29)
        until(lambda: jobs.get_job(job.id), "a look")
        early = state(supervisor)
        ended = until(lambda: clock.advance(1) or final(jobs, job), "its end")
        after = jobs.wait(jobs.submit(["true"]).id, 30)

    assert early == "T"
    assert (ended.status, ended.reason) == (status, Reason.NEVER_STARTED)
    assert after.status is Status.COMPLETE


def final(jobs, job):
    """Return the job once it is final."""
    job = jobs.get_job(job.id)
    return job if job.status.final else None


def test_manager_without_descriptors_to_look_at_supervisors_runs_its_jobs(
    running_jobs, monkeypatch
):
    """The next round checks again whether they are stopped."""

    def refuse(_pid):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(procfs, "is_stopped", refuse)
    monkeypatch.setattr(procfs, "is_held_back", refuse)

    for _ in range(2):
        assert running_jobs.wait(running_jobs.submit(["true"]).id, 60).exit_code == 0
        for supervisor in parts(running_jobs).pool.supervisors:
            supervisor.signal_unresponsive(signal.SIGCONT)
