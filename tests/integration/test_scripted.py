"""Jobs by scripts: no processes, no real time, and all else the product's own."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from uuid import uuid4

import pytest

from jobcore import (
    Command,
    CommandExecutor,
    JobManager,
    NoResult,
    Reason,
    SpawnError,
    Status,
    WaitTimeout,
    tuning,
)
from jobcore.clock import SystemClock
from jobcore.embedding import failpoints
from jobcore.supervisor import execution, job_directory
from jobcore.supervisor import spool as spools
from jobcore.testing import (
    Crashed,
    ManualClock,
    NeverEnds,
    Script,
    ScriptedExecutor,
    crash,
    drain,
    elapse,
)
from jobcore.testing.parts import parts
from jobcore.testing.scripted_process import ScriptedMachine
from tests.processes import PATIENCE, descriptors, in_child, join, left_open, own_threads, until

#: What a host comes to that runs one job to its end.
CRASHES = (
    failpoints.CREATED, failpoints.DIRECTORY_PREPARED, failpoints.REQUEST_PREPARED,
    failpoints.CLAIM_WRITTEN, failpoints.CLAIMED, failpoints.BEFORE_SEND, failpoints.SENT,
    failpoints.IMPORT_READ, failpoints.IMPORT_WRITTEN, failpoints.IMPORTED,
    failpoints.SETTLE_WRITTEN, failpoints.SETTLED, failpoints.DIRECTORY_RENAMED,
)  # fmt: skip

BEGIN = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)


def at(seconds):
    """Return the moment so many seconds behind the clock's start."""
    return BEGIN + timedelta(seconds=seconds)


@dataclass
class ScriptedSetup:
    """A clock, scripted executors and managers on one database, all closed at the end."""

    database: str
    clock: ManualClock = field(default_factory=ManualClock)
    opened: list = field(default_factory=list)

    def scripted(self, *scripts, **options):
        """Return an executor with these scripts."""
        self.opened.append(ScriptedExecutor(*scripts, **{"clock": self.clock, **options}))
        return self.opened[-1]

    def manager(self, scripted, **options):
        """Return a manager whose jobs of every type an executor runs."""
        executors = dict.fromkeys(("COMMAND", "PIPELINE_RUN", "TASK"), scripted)
        options = {"slots": 2, "executors": executors, "clock": self.clock, **options}
        self.opened.append(JobManager(self.database, launcher=scripted, **options))
        return self.opened[-1]

    def play(self, *scripts, **options):
        """Return a manager and the executor that runs its jobs."""
        scripted = self.scripted(*scripts)
        return self.manager(scripted, **options), scripted

    def close(self):
        """Close managers first, then what runs their jobs."""
        for one in sorted(self.opened, key=lambda one: isinstance(one, ScriptedExecutor)):
            one.close()


@pytest.fixture
def scripted_setup(database):
    """Return a maker of managers and executors, and check that it leaves nothing open."""
    before = descriptors()
    made = ScriptedSetup(database)
    yield made
    made.close()
    assert own_threads() == []
    assert left_open(before) == {}


def lines(jobs, job):
    """Return the log as seconds from the clock's start, stream and text."""
    return [
        ((line.timestamp - BEGIN).total_seconds(), line.stream, line.text)
        for line in jobs.logs(job.id)
    ]


def without_names(text):
    """Return a line with the word `one` in place of each process that it names."""
    return re.sub(r"\d+ \(\w+\)", "one", text)


def verdict(job):
    """Return how a job ended."""
    return job.status, job.exit_code, job.reason, job.signal


def story(jobs, job):
    """Return the history as trigger, statuses, reason and seconds from the clock's start."""
    return [
        (str(one.trigger), one.from_status, one.to_status, one.reason, (one.at - BEGIN).seconds)
        for one in jobs.history(job.id)
    ]


def directories(database):
    """Return the job directories that are there."""
    return [name for name in os.listdir(database + ".jobs") if len(name) == 32]


def finished(status, seconds, reason="exited", begun=0):
    """Return the history of a job that ran once."""
    return [
        ("create", None, "QUEUED", None, 0),
        ("start", "QUEUED", "RUNNING", None, begun),
        ("finish", "RUNNING", status, reason, seconds),
    ]


# --- what a script can do -------------------------------------------------------------------


def test_job_follows_its_script(scripted_setup):
    """Lines come at their times, the exit code is the script's, and the directory is gone."""
    jobs, _ = scripted_setup.play(
        Script(["extract", 5, "transform", 2.5, b"load\xff"], exit_code=3)
    )
    job = jobs.submit(["etl"])
    drain(jobs)
    job = jobs.get_job(job.id)

    assert verdict(job) == (Status.ERROR, 3, Reason.EXITED, None)
    assert (job.start_time, job.end_time) == (at(0), at(7.5))
    assert lines(jobs, job) == [
        (0, "output", "extract"),
        (5, "output", "transform"),
        (7.5, "output", "load\ufffd"),
    ]
    assert story(jobs, job) == finished("ERROR", 7)
    assert (job.line_count, job.cpu_seconds, job.max_rss) == (3, 0.0, 0)
    assert directories(scripted_setup.database) == []


def test_a_job_without_a_script_is_complete_at_once(scripted_setup):
    """No time goes by, and nothing is said."""
    jobs, _ = scripted_setup.play()
    job = jobs.submit(["true"])

    job = jobs.wait(job.id, 30)

    assert verdict(job) == (Status.COMPLETE, 0, Reason.EXITED, None)
    assert (job.start_time, job.end_time, job.line_count) == (at(0), at(0), 0)
    assert story(jobs, job) == finished("COMPLETE", 0)


def test_supervisor_preempted_between_two_clocks_records_the_true_end(scripted_setup, monkeypatch):
    """Preempted between the wall clock and the other one, it ends no job before its last line."""
    jobs, _ = scripted_setup.play(Script([10, "last"]))
    paused = 0  # seconds; what both clocks of the supervisor are ahead since then
    time_ns, monotonic = ScriptedMachine.time_ns, ScriptedMachine.monotonic

    def time_and_pause(stage):
        nonlocal paused
        wall = time_ns(stage) + paused * 10**9
        paused = 5
        return wall

    monkeypatch.setattr(ScriptedMachine, "time_ns", time_and_pause)
    monkeypatch.setattr(ScriptedMachine, "monotonic", lambda stage: monotonic(stage) + paused)
    job = jobs.submit(["etl"])
    drain(jobs)
    job = jobs.get_job(job.id)

    assert lines(jobs, job) == [(15, "output", "last")]
    assert (job.status, job.end_time) == (Status.COMPLETE, at(15))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_script_can_be_killed(scripted_setup, number):
    """A signal that nobody here sent is an ERROR with that signal."""
    jobs, _ = scripted_setup.play(Script(["a", 3], signal=number))
    job = jobs.submit(["x"])
    drain(jobs)
    job = jobs.get_job(job.id)

    assert verdict(job) == (Status.ERROR, 128 + number, Reason.SIGNALED, number)
    assert lines(jobs, job) == [(0, "output", "a")]
    assert story(jobs, job) == finished("ERROR", 3, "signaled")


def test_one_move_of_the_clock_goes_through_all_that_happens(scripted_setup):
    """A line at 5, a time-out at 60, a kill at 70 are stamped so, though the clock moved by 100."""
    jobs, _ = scripted_setup.play(Script(["start", 5, "line", 75, "never"], ignores_term=True))
    job = jobs.submit(["x"], timeout=60, grace=10)
    elapse(jobs, 0)
    scripted_setup.clock.advance(100)
    job = jobs.wait(job.id, 30)

    assert verdict(job) == (Status.STOPPED, 137, Reason.TIMEOUT, signal.SIGKILL)
    assert job.end_time == at(70)
    told = [(when, stream, without_names(text)) for when, stream, text in lines(jobs, job)]
    assert told == [
        (0, "output", "start"),
        (5, "output", "line"),
        (60, "system", "time-out after 60 s"),
        (70, "system", "still alive 10.0 s after SIGTERM: killed: one"),
    ]


def test_an_exit_and_a_time_out_at_one_moment(scripted_setup):
    """What has ended is not stopped: the exit decides."""
    jobs, _ = scripted_setup.play(Script([60], exit_code=4))
    job = jobs.submit(["x"], timeout=60)
    drain(jobs)

    assert verdict(jobs.get_job(job.id)) == (Status.ERROR, 4, Reason.EXITED, None)


def test_a_script_that_hangs_is_stopped_without_the_clock(scripted_setup):
    """A stop is acted on when it comes; no time goes by for a command that obeys."""
    jobs, _ = scripted_setup.play(Script(["ready"], hangs=True))
    job = jobs.submit(["x"])
    elapse(jobs, 7)
    jobs.stop_job(job.id)
    job = jobs.wait(job.id, 30)

    assert verdict(job) == (Status.STOPPED, 143, Reason.STOPPED, signal.SIGTERM)
    assert lines(jobs, job) == [
        (0, "output", "ready"),
        (7, "system", f"stopping: asked by pid {os.getpid()}: stop"),
    ]
    assert story(jobs, job) == [
        *finished("STOPPED", 7, "stopped")[:2],
        ("stop", "RUNNING", "RUNNING", None, 7),
        ("finish", "RUNNING", "STOPPED", "stopped", 7),
    ]


def test_a_stop_is_before_what_comes_later(scripted_setup):
    """A stop request that came before the clock moved is handled at its own time."""
    jobs, _ = scripted_setup.play(Script([5, "never"]))
    for _ in range(20):
        job = jobs.submit(["x"])
        elapse(jobs, 0)
        begun = scripted_setup.clock.monotonic()
        jobs.stop_job(job.id)
        scripted_setup.clock.advance(5)
        job = jobs.wait(job.id, 30)

        assert verdict(job)[2] is Reason.STOPPED
        assert job.end_time == at(begun - 1000)
        assert job.line_count == 1


def test_a_grace_is_shortened_by_a_second_stop(scripted_setup):
    """The second stop counts from its own time, the reason stays the first one's."""
    jobs, _ = scripted_setup.play(Script(hangs=True, ignores_term=True))
    job = jobs.submit(["x"], grace=60)
    elapse(jobs, 0)
    jobs.stop_job(job.id)
    elapse(jobs, 10)
    jobs.stop_job(job.id, grace=5)
    drain(jobs)
    job = jobs.get_job(job.id)

    assert verdict(job) == (Status.STOPPED, 137, Reason.STOPPED, signal.SIGKILL)
    assert job.end_time == at(15)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOENT, 127, "program not found (ENOENT)"),
        (errno.EACCES, 126, "not executable (EACCES)"),
        (errno.E2BIG, 126, "arguments and environment are too long (E2BIG)"),
    ],
)
def test_a_command_that_cannot_start(scripted_setup, number, code, words):
    """It has the shell's exit code for this, and the reason in its log."""
    jobs, _ = scripted_setup.play(Script(cannot_start=number))
    job = jobs.submit(["etl"])
    job = jobs.wait(job.id, 30)

    assert verdict(job) == (Status.ERROR, code, Reason.SPAWN_FAILED, None)
    assert lines(jobs, job) == [(0, "system", f"cannot start 'etl': {words}")]
    assert story(jobs, job) == finished("ERROR", 0, "spawn_failed")


def test_grandchild_is_killed_after_the_linger(scripted_setup):
    """The command's exit decides; leftovers have 2 seconds after SIGTERM."""
    script = Script(["a", 1], leaves_grandchild=True, ignores_term=True, exit_code=4)
    jobs, _ = scripted_setup.play(script)
    job = jobs.submit(["x"])
    drain(jobs)
    job = jobs.get_job(job.id)

    assert verdict(job) == (Status.ERROR, 4, Reason.EXITED, None)
    assert [(when, without_names(text)) for when, _, text in lines(jobs, job)] == [
        (0, "a"),
        (2, "the command exited with 4 and left one: SIGTERM"),
        (4, "still alive 2.0 s after SIGTERM: killed: one"),
    ]
    assert job.end_time == at(4)
    assert job.left_processes == 1


def test_a_grandchild_ends_with_sigterm(scripted_setup):
    """A second after the command's end it gets SIGTERM, and nothing has to be killed."""
    jobs, _ = scripted_setup.play(Script(["a", 1], leaves_grandchild=True))
    job = jobs.submit(["x"])
    drain(jobs)
    job = jobs.get_job(job.id)

    assert verdict(job) == (Status.COMPLETE, 0, Reason.EXITED, None)
    assert (job.end_time, job.left_processes, job.line_count) == (at(2), 1, 2)


def test_a_grandchild_ends_with_a_stop(scripted_setup):
    """SIGTERM reaches all processes of the job, so nothing has to be killed."""
    jobs, _ = scripted_setup.play(Script(leaves_grandchild=True, hangs=True))
    job = jobs.submit(["x"])
    elapse(jobs, 0)
    jobs.stop_job(job.id)
    drain(jobs)
    job = jobs.get_job(job.id)

    assert verdict(job) == (Status.STOPPED, 143, Reason.STOPPED, signal.SIGTERM)
    assert job.line_count == 1


def test_a_flood_is_all_there(scripted_setup):
    """More lines than pipe and transaction hold come through, numbered, and no time goes by."""
    jobs, _ = scripted_setup.play(Script(["first"], floods=200_000))
    job = jobs.submit(["x"])
    job = jobs.wait(job.id, 60)

    texts = [line.text for line in jobs.logs(job.id)]
    assert texts == ["first", *(f"flood {number}" for number in range(200_000))]
    assert job.end_time == at(0)


def test_a_supervisor_that_dies_loses_its_job(scripted_setup):
    """Its lines are there, and no exit code is guessed."""
    jobs, _ = scripted_setup.play(Script(["a", 5, "b"], dies=True), Script())
    job = jobs.submit(["x"])
    other = jobs.submit(["y"])
    drain(jobs)
    job = jobs.get_job(job.id)

    assert verdict(job) == (Status.ERROR, None, Reason.LOST, None)
    assert lines(jobs, job)[:2] == [(0, "output", "a"), (5, "output", "b")]
    assert "lost: its supervisor died" in lines(jobs, job)[2][2]
    assert story(jobs, job) == finished("ERROR", 5, "lost")
    assert jobs.get_job(other.id).status is Status.COMPLETE


def test_a_supervisor_can_be_made_to_die(scripted_setup):
    """Its locks are free at once; a job with a stop request ends STOPPED."""
    jobs, scripted = scripted_setup.play(Script(["a"], hangs=True, ignores_term=True))
    one, other, stopped = (jobs.submit(["x"]) for _ in range(3))
    elapse(jobs, 0)

    assert scripted.running() == [one.id, other.id]

    scripted.die(one)
    one = jobs.wait(one.id, 30)
    elapse(jobs, 1)
    assert scripted.running() == [other.id, stopped.id]

    jobs.stop_job(stopped.id)
    scripted.die(str(stopped.id))
    stopped = jobs.wait(stopped.id, 30)

    assert verdict(one) == (Status.ERROR, None, Reason.LOST, None)
    assert verdict(stopped) == (Status.STOPPED, None, Reason.LOST, None)
    assert jobs.get_job(other.id).status is Status.RUNNING
    with pytest.raises(LookupError):
        scripted.die(one.id)
    with pytest.raises(LookupError):
        scripted.shut_down(uuid4())

    scripted.die()
    assert jobs.wait(other.id, 30).reason is Reason.LOST


def test_a_supervisor_can_be_shut_down(scripted_setup):
    """Its job is stopped with its own grace, reason `shutdown`, and the next one has another."""
    jobs, scripted = scripted_setup.play(Script(hangs=True, ignores_term=True), Script(), slots=1)
    job, following = jobs.submit(["x"], grace=4), jobs.submit(["y"])
    elapse(jobs, 0)
    scripted.shut_down(job.id)
    drain(jobs)
    job = jobs.get_job(job.id)

    assert verdict(job) == (Status.STOPPED, 137, Reason.SHUTDOWN, signal.SIGKILL)
    assert lines(jobs, job)[0] == (0, "system", "stopping: the supervisor was asked to exit")
    assert job.end_time == at(4)
    assert jobs.get_job(following.id).status is Status.COMPLETE


def test_all_supervisors_can_be_shut_down(scripted_setup):
    """Those that are idle leave, and new ones are started for new jobs."""
    jobs, scripted = scripted_setup.play()
    jobs.wait(jobs.submit(["x"]).id, 30)
    scripted.shut_down()

    assert jobs.wait(jobs.submit(["x"]).id, 30).exit_code == 0


def test_streams_can_be_kept_apart(scripted_setup):
    """A line goes to the stream that the script says; without `separate_streams` to one."""
    script = Script(["out", ("stderr", "err"), 1, ("stdout", "out")])
    jobs, _ = scripted_setup.play(script)
    apart = jobs.submit(["x"], separate_streams=True)
    together = jobs.submit(["x"])
    drain(jobs)

    assert lines(jobs, apart) == [(0, "stdout", "out"), (0, "stderr", "err"), (1, "stdout", "out")]
    assert [stream for _, stream, _ in lines(jobs, together)] == ["output"] * 3


def test_unfinished_text_is_seen_and_keeps_its_time(scripted_setup):
    """A prompt has no number while it stands, and then that of its line, or of a piece."""
    script = Script(["a", ("unfinished", "Continue? "), 10, "yes", ("unfinished", "Sure? ")],
                    hangs=True)  # fmt: skip
    jobs, _ = scripted_setup.play(script)
    job = jobs.submit(["x"])
    elapse(jobs, 1)
    seen = list(jobs.logs(job.id))
    assert [(line.sequence, line.text) for line in seen] == [(0, "a"), (None, "Continue? ")]
    assert seen[1].timestamp == at(0)
    elapse(jobs, 19)
    jobs.stop_job(job.id)
    jobs.wait(job.id, 30)

    assert lines(jobs, job)[:3] == [
        (0, "output", "a"), (0, "output", "Continue? yes"), (10, "output", "Sure? "),
    ]  # fmt: skip
    assert {stream for _, stream, _ in lines(jobs, job)[3:]} == {"system"}


def test_script_hands_values_over_as_a_command_does(scripted_setup):
    """Its result is stored, or told to be invalid; its pipeline's state, where it has one."""
    jobs, _ = scripted_setup.play(
        Script([("result", '{"rows": 3}'), ("state", "[1]"), 5, "loaded"])
    )
    pipeline = jobs.create_pipeline("p", ["x"])
    job, alone = jobs.create_job(pipeline_id=pipeline.id), jobs.submit(["x"])
    drain(jobs)

    assert jobs.result(job.id) == jobs.result(alone.id) == {"rows": 3}
    assert jobs.get_pipeline_state(pipeline.id) == [1]
    assert lines(jobs, alone) == [(5, "output", "loaded")]


def test_script_hands_nothing_over_where_it_fails(scripted_setup):
    """Nor what is not JSON; the log says so then."""
    jobs, _ = scripted_setup.play(Script([("result", "1")], exit_code=3), Script([("result", "{")]))
    for count in (0, 1):
        job = jobs.submit(["x"])
        drain(jobs)
        with pytest.raises(NoResult):
            jobs.result(job.id)
        assert len(list(jobs.logs(job.id))) == count


@pytest.mark.parametrize("dies", [False, True])
def test_bar_of_an_hour_is_one_line(scripted_setup, dies):
    """Also when its supervisor dies: what was drawn last was stored a moment later."""
    drawn = [f"{second / 36:5.1f}%\r" for second in range(0, 3600, 4)]
    parts = [part for one in drawn for part in (("unfinished", one), 4)]
    jobs, _ = scripted_setup.play(Script(parts, dies=dies))
    job = jobs.submit(["x"])
    elapse(jobs, 0)
    scripted_setup.clock.advance(3600)
    drain(jobs)

    (line,) = (line for line in jobs.logs(job.id) if line.stream != "system")
    assert (line.sequence, line.raw, line.timestamp) == (0, "".join(drawn).encode(), at(0))
    assert jobs.get_job(job.id).line_count == (2 if dies else 1)


def test_progress_is_reported_by_the_clock(scripted_setup):
    """Reports on the descriptor and in the output are on the job with their times, in no log."""
    script = Script(["a", ("progress", "1/4 loading"), 10, "jobcore:progress 3/4", 5])
    jobs, _ = scripted_setup.play(script)
    job = jobs.submit(["x"])
    elapse(jobs, 9)
    first = jobs.get_job(job.id).progress
    elapse(jobs, 1)
    second = jobs.get_job(job.id).progress
    drain(jobs)

    assert (first.done, first.total, first.message, first.at) == (1, 4, "loading", at(0))
    assert (second.done, second.total, second.message, second.at) == (3, 4, None, at(10))
    assert lines(jobs, job) == [(0, "output", "a")]


def test_a_second_report_waits_no_longer_than_it_must(scripted_setup):
    """A report that comes soon after another is written a moment later, though the job is quiet."""
    jobs, _ = scripted_setup.play(Script([("progress", "1/9"), 0.1, ("progress", "2/9"), 60]))
    job = jobs.submit(["x"])
    elapse(jobs, 0.2)
    early = jobs.get_job(job.id).progress
    elapse(jobs, 0.1)
    late = jobs.get_job(job.id).progress
    drain(jobs)

    assert (early.done, early.at) == (1, at(0))
    assert (late.done, late.at) == (2, at(0.1))


def test_a_full_disk_holds_the_command_by_the_clock(scripted_setup, monkeypatch):
    """Nothing is lost; the supervisor tries again a second later, as often as it takes."""
    writev = os.writev
    full = [True]

    def write(descriptor, parts):
        if full[0]:
            raise OSError(errno.ENOSPC, "no space")
        return writev(descriptor, parts)

    monkeypatch.setattr(spools.os, "writev", write)
    jobs, _ = scripted_setup.play(Script(["a", 1, "b"]))
    job = jobs.submit(["x"])
    elapse(jobs, 20)
    assert jobs.get_job(job.id).status is Status.RUNNING

    full[0] = False
    drain(jobs)
    job = jobs.get_job(job.id)

    assert verdict(job) == (Status.COMPLETE, 0, Reason.EXITED, None)
    assert [text for _, _, text in lines(jobs, job)] == ["a", "b"]
    assert job.end_time == at(21)


# --- which script, and what command ----------------------------------------------------------


def test_the_nth_job_gets_the_nth_script(scripted_setup):
    """Jobs that are one after the other have them in turn; the last one is for all others."""
    jobs, _ = scripted_setup.play(Script(exit_code=1), Script(exit_code=2), Script(["last"]))
    made = jobs.submit_many([["x"]] * 5)
    drain(jobs)

    assert [jobs.get_job(job.id).exit_code for job in made] == [1, 2, 0, 0, 0]


def test_a_callable_chooses_by_the_job(scripted_setup):
    """It gets each job as its executor does; its exception is in that job's log."""

    def choose(job):
        if job.name == "bad":
            raise RuntimeError("no such name")
        if job.name == "odd":
            return "script"
        return Script([job.name, job.command.argv[0]], exit_code=len(job.name))

    jobs, _ = scripted_setup.play(choose)
    good, bad, odd = (jobs.submit(["etl"], name=name) for name in ("abc", "bad", "odd"))
    drain(jobs)

    assert jobs.get_job(good.id).exit_code == 3
    assert [text for _, _, text in lines(jobs, good)] == ["abc", "etl"]
    assert verdict(jobs.get_job(bad.id)) == (Status.ERROR, None, Reason.SPAWN_FAILED, None)
    assert [text for _, _, text in lines(jobs, bad)] == ["cannot start: RuntimeError: no such name"]
    assert verdict(jobs.get_job(odd.id))[2] is Reason.SPAWN_FAILED
    assert "the callable must return a Script, not 'script'" in lines(jobs, odd)[0][2]


def test_command_comes_from_the_job_or_its_pipeline(scripted_setup):
    """It can be looked at, and its options hold, the pipeline's time-out, too."""
    jobs, scripted = scripted_setup.play(Script([100]))
    pipeline = jobs.create_pipeline("p", script="echo hello", timeout=30)
    own = jobs.submit(["etl", "--all"], env={"A": "b"})
    of_pipeline = jobs.create_job(pipeline_id=pipeline.id)
    task = jobs.create_job("TASK")
    drain(jobs)

    assert scripted.commands == {
        own.id: Command(["etl", "--all"], env={"A": "b"}, cwd=os.getcwd()),
        of_pipeline.id: Command("echo hello", shell=True, timeout=30),
        task.id: Command(["scripted"]),
    }
    assert jobs.get_job(of_pipeline.id).reason is Reason.TIMEOUT
    assert jobs.get_job(of_pipeline.id).end_time == at(30)


def test_any_executor_will_do(scripted_setup):
    """Where another one says what to run, scripts are given in the order of the starts."""
    scripted = scripted_setup.scripted(Script(exit_code=1), Script(exit_code=2))
    jobs = scripted_setup.manager(scripted, executors={"COMMAND": CommandExecutor()}, slots=1)
    made = jobs.submit_many([["x"]] * 3)
    drain(jobs)

    assert [jobs.get_job(job.id).exit_code for job in made] == [1, 2, 2]
    assert scripted.commands == {}


def test_a_callable_must_be_asked(scripted_setup):
    """Where another executor says what to run, nobody knows the script, and the job says so."""
    scripted = scripted_setup.scripted(lambda _job: Script())
    jobs = scripted_setup.manager(scripted, executors={"COMMAND": CommandExecutor()})
    job = jobs.submit(["etl"])
    job = jobs.wait(job.id, 30)

    assert verdict(job) == (Status.ERROR, None, Reason.SPAWN_FAILED, None)
    assert [text for _, _, text in lines(jobs, job)] == [
        "cannot start 'etl': no script: no such file or directory (ENOENT)"
    ]


@pytest.mark.parametrize("scripts", [(5,), ("a",), (Script(), None), (Script(), print)])
def test_invalid_script_is_refused(scripts):
    """It is a ValueError, and nothing is begun."""
    with pytest.raises(ValueError, match="script"):
        ScriptedExecutor(*scripts)


# --- the same as with processes ---------------------------------------------------------------

TRAPS = "trap '' TERM; echo ready; exec sleep 300"


@dataclass(frozen=True)
class Behaviour:
    """A program, the script that does the same, and what is done to the job."""

    name: str
    argv: list[str]
    script: Script
    options: dict = field(default_factory=dict)
    act: Callable = lambda _jobs, _job: None


def stop(jobs, job):
    """Ask the job to stop."""
    jobs.stop_job(job.id)


BEHAVIOURS = [
    Behaviour("exit 0", ["true"], Script()),
    Behaviour("exit 3", ["sh", "-c", "echo a; exit 3"], Script(["a"], exit_code=3)),
    Behaviour("exit 255", ["sh", "-c", "exit 255"], Script(exit_code=255)),
    Behaviour("SIGKILL", ["sh", "-c", "kill -KILL $$"], Script(signal=signal.SIGKILL)),
    Behaviour("SIGTERM", ["sh", "-c", "kill -TERM $$"], Script(signal=signal.SIGTERM)),
    Behaviour(
        "time-out",
        ["sh", "-c", "echo a; exec sleep 300"],
        Script(["a"], hangs=True),
        {"timeout": 2},  # the line comes before it
    ),
    Behaviour(
        "time-out, TERM ignored",
        ["sh", "-c", TRAPS],
        Script(["ready"], hangs=True, ignores_term=True),
        {"timeout": 2, "grace": 0.5},
    ),
    Behaviour(
        "stop",
        ["sh", "-c", "echo ready; exec sleep 300"],
        Script(["ready"], hangs=True),
        act=stop,
    ),
    Behaviour(
        "stop, TERM ignored",
        ["sh", "-c", TRAPS],
        Script(["ready"], hangs=True, ignores_term=True),
        {"grace": 0.5},
        act=stop,
    ),
    Behaviour("not found", ["/no/such/program"], Script(cannot_start=errno.ENOENT)),
    Behaviour("not executable", ["/etc/passwd"], Script(cannot_start=errno.EACCES)),
    Behaviour(
        "output limit",
        ["sh", "-c", "echo one; echo two; echo three; echo four"],
        Script(["one", "two", "three", "four"]),
        {"output_limit": 10},
    ),
    Behaviour(
        "redact",
        ["sh", "-c", "echo a secret b; echo secre; echo secretsecret"],
        Script(["a secret b", "secre", "secretsecret"]),
        {"redact": ["secret"]},
    ),
    Behaviour(
        "linger",
        ["sh", "-c", "sleep 300 & echo a; exit 4"],
        Script(["a"], leaves_grandchild=True, exit_code=4),
    ),
    Behaviour(
        "open end and bytes",
        ["printf", "a\\r\\n\\377\\nb"],
        Script([b"a\r\n", b"\xff", "b"], open_end=True),
    ),
    Behaviour(
        "a long line",
        ["sh", "-c", "head -c 150000 /dev/zero | tr '\\0' x; echo"],
        Script(["x" * 150_000]),
    ),
    Behaviour(
        "text without a newline",
        ["sh", "-c", "printf 'sure? '; sleep 0.5; echo yes; printf 'more? '"],
        Script([("unfinished", "sure? "), 0.5, "yes", ("unfinished", "more? ")]),
    ),
    Behaviour(
        "streams apart",
        ["sh", "-c", "echo a; sleep 0.2; echo b >&2"],
        Script(["a", 0.2, ("stderr", "b")]),
        {"separate_streams": True},
    ),
]


def _without_time(text):
    return re.sub(r"\d+\.\d s", "some s", text)


def facts(jobs, job):
    """Return all that is stored of a job, but for ids, times and what a process costs."""
    job = jobs.get_job(job.id)
    apart = {"id", "workspace_id", "number", "cpu_seconds", "max_rss", "data"}
    values = {name: getattr(job, name) for name in type(job).model_fields if name not in apart}
    row = {name: value for name, value in values.items() if not isinstance(value, datetime)}
    log = [
        (line.sequence, line.stream, without_names(_without_time(line.text)), line.partial)
        for line in jobs.logs(job.id)
    ]
    told = [
        (one.trigger, one.from_status, one.to_status, one.reason) for one in jobs.history(job.id)
    ]
    return row, log, told


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=[one.name for one in BEHAVIOURS])
def test_a_script_and_a_process_leave_the_same(scripted_setup, tmp_path, behaviour):
    """Row, log and history are those of a real program that does the same."""
    jobs, _ = scripted_setup.play(behaviour.script)
    scripted = jobs.submit(behaviour.argv, **behaviour.options)
    elapse(jobs, 0)
    behaviour.act(jobs, scripted)
    drain(jobs)
    with JobManager(tmp_path / "real.db", slots=1, on_exit="stop") as real:
        job = real.submit(behaviour.argv, **behaviour.options)
        if behaviour.act is stop:
            next(real.follow(job.id, timeout=60))
        behaviour.act(real, job)
        real.wait(job.id, 60)
        row, log, told = facts(real, job)

    assert facts(jobs, scripted) == (row, log, told)


# --- what the clock alone brings --------------------------------------------------------------


def test_a_delayed_job_is_started_at_its_time(scripted_setup):
    """Neither before nor a second later."""
    jobs, _ = scripted_setup.play(Script([2]))
    job = jobs.submit(["x"], not_before=at(3600))
    elapse(jobs, 3599)
    assert jobs.get_job(job.id).status is Status.QUEUED

    drain(jobs)
    job = jobs.get_job(job.id)

    assert (job.start_time, job.end_time) == (at(3600), at(3602))


def test_manager_that_ran_a_job_meanwhile_is_not_idle(scripted_setup, monkeypatch):
    """A job that started and ended during the look may have let another one start."""
    jobs, _ = scripted_setup.play(Script())
    drain(jobs)
    dispatcher, is_empty = parts(jobs).dispatcher, type(parts(jobs).queue).is_empty

    def empty_then_run(self, **options):
        found = is_empty(self, **options)
        jobs.wait(jobs.submit(["x"]).id, timeout=PATIENCE)
        until(lambda: not dispatcher.running(), "the release of the job")
        return found

    assert dispatcher.waits_only_for(())
    monkeypatch.setattr(type(parts(jobs).queue), "is_empty", empty_then_run)
    assert not dispatcher.waits_only_for(())


def test_retries_come_with_their_pauses(scripted_setup):
    """Each attempt begins when the back-off of the one before is over."""
    jobs, _ = scripted_setup.play(Script([1], exit_code=1), Script([1], exit_code=2), Script([1]))
    pipeline = jobs.create_pipeline("p", ["etl"], max_retries=5)
    first = jobs.create_job(pipeline_id=pipeline.id)
    drain(jobs)
    attempts = jobs.list_jobs()[::-1]

    second = 1 + 10
    third = second + 1 + 20
    assert [job.exit_code for job in attempts] == [1, 2, 0]
    assert [job.start_time for job in attempts] == [at(0), at(second), at(third)]
    assert [job.retry_of for job in attempts] == [None, first.id, attempts[1].id]


def test_a_schedule_is_kept_by_the_clock(scripted_setup):
    """Each tick makes a job at its own time, though hours go by in one call."""
    jobs, _ = scripted_setup.play(Script(["run", 60]))
    pipeline = jobs.create_pipeline("p", ["etl"], schedule="*/15 * * * *")
    elapse(jobs, 3600)
    ran = jobs.list_jobs()[::-1]

    ticks = [datetime(2023, 11, 14, 22, 15, tzinfo=timezone.utc) + timedelta(minutes=15) * number
             for number in range(4)]  # fmt: skip
    assert [job.created for job in ran] == ticks
    assert [job.end_time for job in ran] == [tick + timedelta(seconds=60) for tick in ticks]
    assert jobs.skips(pipeline.id) == []


def test_old_jobs_are_old_by_the_clock(scripted_setup):
    """What is removed by age goes when the clock says so."""
    jobs, _ = scripted_setup.play(Script([10]))
    jobs.submit(["x"])
    drain(jobs)
    elapse(jobs, 3600)

    assert jobs.prune(3601) == 0
    scripted_setup.clock.advance(2)
    assert jobs.prune(3601) == 1


def test_the_clock_wakes_the_chores(scripted_setup, monkeypatch):
    """A tick is taken when the clock was moved, not when chores are due by real time."""
    monkeypatch.setattr(tuning, "CHORES_PAUSE", 3600.0)
    jobs, _ = scripted_setup.play()
    jobs.create_pipeline("p", ["etl"], schedule="*/15 * * * *")
    until(lambda: parts(jobs).dispatcher._next_chores > time.monotonic() + 60, "the first chores")
    scripted_setup.clock.advance(100)
    until(lambda: [job.exit_code for job in jobs.list_jobs()] == [0], "the tick")

    scripted_setup.clock.jump(900)
    until(lambda: len(jobs.list_jobs()) == 2, "the next tick")


def test_a_manager_that_is_closed_watches_no_clock(scripted_setup):
    """A clock keeps no reference to a closed manager."""
    jobs, scripted = scripted_setup.play()
    jobs.close()
    scripted.close()

    assert (scripted_setup.clock._callbacks, scripted_setup.clock._driven) == ({}, {})


def test_a_hosts_own_clock_may_be_moved_too(scripted_setup):
    """What tells of its moves is enough; what is due then happens then."""

    class Own:
        """A host's clock."""

        def __init__(self):
            self.seconds = 0.0
            self.callbacks = []

        def now(self):
            return 1_700_000_000_000_000 + round(self.seconds * 1e6)

        def monotonic(self):
            return self.seconds

        def watch(self, callback):
            self.callbacks.append(callback)
            return lambda: self.callbacks.remove(callback)

        def move(self, seconds):
            self.seconds += seconds
            for callback in list(self.callbacks):
                callback()

    own = Own()
    scripted = scripted_setup.scripted(Script(["a", 500, "b"]), clock=own)
    jobs = scripted_setup.manager(scripted, clock=own)
    job = jobs.submit(["x"])
    until(lambda: [line.text for line in jobs.logs(job.id)] == ["a"], "the first line")
    own.move(500)
    job = jobs.wait(job.id, 30)

    assert verdict(job) == (Status.COMPLETE, 0, Reason.EXITED, None)
    assert lines(jobs, job) == [(0, "output", "a"), (500, "output", "b")]
    jobs.close()
    scripted.close()
    assert own.callbacks == []


def test_with_the_machines_clock_pauses_take_their_time(scripted_setup):
    """Nobody moves anything, and the job ends when its pauses are over."""
    clock = SystemClock()
    scripted = scripted_setup.scripted(Script(["a", 0.05, "b", 0.05], exit_code=2), clock=clock)
    jobs = scripted_setup.manager(scripted, clock=clock)
    job = jobs.submit(["x"], timeout=3600)
    job = jobs.wait(job.id, 30)

    first, second = (line.timestamp for line in jobs.logs(job.id))
    assert job.exit_code == 2
    assert first < second < job.end_time
    assert job.end_time - job.start_time >= timedelta(seconds=0.1)


# --- draining -----------------------------------------------------------------------------------


def test_draining_runs_all_that_is_queued(scripted_setup):
    """More jobs than slots, of which each takes its time, are done in their order."""
    jobs, _ = scripted_setup.play(Script([10]))
    made = jobs.submit_many([["x"]] * 7)
    drain(jobs, scripted_setup.clock)
    ended = [jobs.get_job(job.id) for job in made]

    assert {job.status for job in ended} == {Status.COMPLETE}
    assert [job.end_time for job in ended] == [at(n) for n in (10, 10, 20, 20, 30, 30, 40)]


def test_draining_runs_what_follows(scripted_setup):
    """A pipeline that is triggered is run, too."""
    jobs, _ = scripted_setup.play(Script([10]))
    first = jobs.create_pipeline("first", ["x"])
    second = jobs.create_pipeline("second", ["x"], triggered_by=["first"])
    jobs.create_job(pipeline_id=first.id)
    drain(jobs)

    (job,) = jobs.list_jobs(pipeline_id=second.id)
    assert (job.status, job.end_time) == (Status.COMPLETE, at(20))


def test_draining_an_empty_queue_moves_no_time(scripted_setup):
    """Nor do schedules, which never end, nor tasks that a host keeps the books of."""
    jobs, _ = scripted_setup.play()
    jobs.create_pipeline("p", ["x"], schedule="@hourly")
    kept = jobs.start_job(jobs.create_job("BOOKS").id)
    jobs.create_job("BOOKS")
    drain(jobs)
    jobs.finish_job(kept.id)

    assert scripted_setup.clock.monotonic() == 1000.0


def test_running_chore_does_not_count_as_endless_work(scripted_setup):
    """A drain waits for the chore, and returns when nothing is left."""
    jobs, _ = scripted_setup.play(Script([5]))
    jobs.submit(["etl"])
    steps = iter([True] * 100)
    parts(jobs).dispatcher._in_steps = lambda: next(steps, False)
    drain(jobs)

    assert jobs.count_jobs()[Status.COMPLETE] == 1
    assert next(steps, None) is None


def test_drain_names_a_hanging_job(scripted_setup):
    """It is an error that names the job and why, not a test that waits for ever."""
    jobs, _ = scripted_setup.play(Script(["a"], hangs=True), Script([5]), slots=1)
    job = jobs.submit(["x"], name="loader")
    jobs.submit(["y"])
    with pytest.raises(NeverEnds, match=rf"{job.id} \(loader\): its script hangs") as caught:
        drain(jobs)

    assert caught.value.job_ids == (job.id,)
    assert isinstance(caught.value, AssertionError)

    jobs.stop_job(job.id)
    drain(jobs)
    assert jobs.count_jobs()[Status.COMPLETE] == 1


def test_drain_waits_for_processes_up_to_its_patience(scripted_setup):
    """A job with a process goes by real time, so real time is the limit."""
    jobs = JobManager(scripted_setup.database, slots=1, clock=scripted_setup.clock, on_exit="stop")
    scripted_setup.opened.append(jobs)
    job = jobs.submit(["sleep", "300"])
    until(lambda: jobs.get_job(job.id).status is Status.RUNNING, "its start")

    with pytest.raises(WaitTimeout, match=str(job.id)):
        drain(jobs, patience=0.3)

    jobs.stop_job(job.id)
    drain(jobs)
    assert jobs.get_job(job.id).status is Status.STOPPED


@pytest.mark.usefixtures("quick_failures")
def test_drain_raises_if_no_supervisor_starts(scripted_setup):
    """If no supervisor can start, `drain` raises before its time-out."""
    scripted = scripted_setup.scripted()
    jobs = scripted_setup.manager(scripted)
    scripted.close()
    scripted.close()
    jobs.submit(["x"])

    with pytest.raises(SpawnError, match="closed"):
        drain(jobs)


def test_draining_needs_a_clock_that_it_can_move(scripted_setup, database):
    """A manager with another clock, or without slots, is refused."""
    with (
        JobManager(database, slots=1) as running,
        JobManager(database, slots=0, clock=scripted_setup.clock) as idle,
    ):
        for call in (drain, lambda jobs: elapse(jobs, 1)):
            with pytest.raises(ValueError, match="runs by itself: ask for the fixture job_clock"):
                call(running)
            with pytest.raises(ValueError, match="no slots"):
                call(idle)
        with pytest.raises(ValueError, match="another clock"):
            drain(idle, ManualClock())


@pytest.mark.parametrize("seconds", [-1, float("nan"), "1", None])
def test_only_time_that_goes_by_can_elapse(scripted_setup, seconds):
    """Anything but a number of seconds is refused."""
    jobs, _ = scripted_setup.play()

    with pytest.raises(ValueError):
        elapse(jobs, seconds)


def test_time_elapses_to_the_moment_that_was_asked_for(scripted_setup):
    """What is due at its end is done, what is due later is not."""
    jobs, _ = scripted_setup.play(Script([10], exit_code=1), Script([10.5]))
    first, second = jobs.submit(["x"]), jobs.submit(["y"])
    elapse(jobs, 10)

    assert scripted_setup.clock.monotonic() == 1010.0
    assert jobs.get_job(first.id).status is Status.ERROR
    assert jobs.get_job(second.id).status is Status.RUNNING


# --- hosts come and go --------------------------------------------------------------------------


def test_a_job_outlives_its_host(scripted_setup):
    """The host is closed in the middle; the next one goes on with the job and settles it."""
    jobs, scripted = scripted_setup.play(Script(["a", 5, "b", 5, "c"], exit_code=3))
    job = jobs.submit(["x"])
    elapse(jobs, 0)
    jobs.close()
    scripted_setup.clock.advance(5)

    jobs = scripted_setup.manager(scripted)
    assert lines(jobs, job) == [(0, "output", "a"), (5, "output", "b")]

    drain(jobs)
    job = jobs.get_job(job.id)
    assert verdict(job) == (Status.ERROR, 3, Reason.EXITED, None)
    assert lines(jobs, job)[2:] == [(10, "output", "c")]
    assert job.end_time == at(10)
    assert directories(scripted_setup.database) == []


def test_a_job_that_ended_without_a_host_is_settled_by_the_next(scripted_setup, monkeypatch):
    """Its end is the true one, and was made durable, as nobody else would do so."""
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(job_directory.os, "fsync", lambda fd: (synced.append(fd), fsync(fd)))
    jobs, scripted = scripted_setup.play(Script(["a", 50]))
    job = jobs.submit(["x"], timeout=20)
    elapse(jobs, 0)
    jobs.close()
    synced.clear()
    scripted_setup.clock.advance(1000)
    assert len(synced) == 3  # the spool, the verdict and the directory
    assert scripted.running() == []

    with JobManager(scripted_setup.database, slots=0, clock=scripted_setup.clock) as reader:
        job = reader.get_job(job.id)

        assert verdict(job) == (Status.STOPPED, 143, Reason.TIMEOUT, signal.SIGTERM)
        assert job.end_time == at(20)
        assert lines(reader, job) == [
            (0, "output", "a"),
            (20, "system", "time-out after 20 s"),
        ]


@pytest.mark.parametrize("point", CRASHES)
def test_a_host_crashes_at_any_step(scripted_setup, point):
    """The next host settles every job: as it ended, or as `never_started` if it did not start."""
    jobs, scripted = scripted_setup.play(Script(["a", 5, "b"], exit_code=3), slots=1)
    with crash(jobs, at=point):
        try:
            job = jobs.submit(["x"])
            elapse(jobs, 0)
            jobs.get_job(job.id)  # imports the first line, if the dispatcher has not yet
            elapse(jobs, 10)
        except Crashed:
            pass  # this thread came there, or found it dead
    scripted_setup.clock.advance(10)
    jobs = scripted_setup.manager(scripted, slots=1)
    drain(jobs)
    (job,) = jobs.list_jobs()

    if job.reason is Reason.NEVER_STARTED:
        assert point in (failpoints.CLAIMED, failpoints.BEFORE_SEND)
    else:
        assert verdict(job) == (Status.ERROR, 3, Reason.EXITED, None)
        assert [text for _, _, text in lines(jobs, job)] == ["a", "b"]
        assert job.end_time - job.start_time == timedelta(seconds=5)
    until(
        lambda: directories(scripted_setup.database) == [], "the removal of what the dead host left"
    )


def test_unstarted_jobs_are_left_to_the_next_host(scripted_setup):
    """Closing the executor before the manager loses what ran, and nothing else."""
    jobs, scripted = scripted_setup.play(Script(["a"], hangs=True), slots=1)
    running, queued = jobs.submit(["x"]), jobs.submit(["y"])
    elapse(jobs, 0)
    scripted.close()
    running = jobs.wait(running.id, 30)
    jobs.close()

    jobs, _ = scripted_setup.play(Script())
    drain(jobs)
    assert running.reason is Reason.LOST
    assert jobs.get_job(queued.id).status is Status.COMPLETE


def test_a_manager_can_stop_its_jobs_when_it_closes(scripted_setup):
    """`on_exit="stop"` needs no clock where commands obey."""
    jobs, scripted = scripted_setup.play(Script(hangs=True), on_exit="stop")
    job = jobs.submit(["x"])
    elapse(jobs, 0)
    jobs.close()
    jobs.close()

    with JobManager(scripted_setup.database, slots=0) as reader:
        assert verdict(reader.get_job(job.id))[:3] == (Status.STOPPED, 143, Reason.STOPPED)
    assert scripted.running() == []


def test_two_managers_share_an_executor(scripted_setup):
    """Each runs jobs of the same file, and every job runs once."""
    scripted = scripted_setup.scripted(Script([1]))
    one, other = scripted_setup.manager(scripted), scripted_setup.manager(scripted)
    made = [one.submit(["x"]) for _ in range(10)]
    drain(one)
    drain(other)

    assert {one.get_job(job.id).status for job in made} == {Status.COMPLETE}
    assert len(scripted.commands) == 10


def test_a_deleted_job_is_stopped_and_leaves_nothing(scripted_setup):
    """Row, log and directory are gone, and its supervisor takes the next job."""
    jobs, scripted = scripted_setup.play(Script(["a"], hangs=True), Script())
    job = jobs.submit(["x"])
    elapse(jobs, 0)
    jobs.delete_job(job.id)

    assert jobs.list_jobs() == []
    assert directories(scripted_setup.database) == []
    assert scripted.running() == []
    assert jobs.wait(jobs.submit(["y"]).id, 30).exit_code == 0


def test_a_directory_that_is_removed_takes_the_output_along(scripted_setup):
    """The job ends normally, its output is dropped and counted, and other jobs are unaffected."""
    jobs, _ = scripted_setup.play(Script([1, "a"]), Script([2, "b"]))
    job, other = jobs.submit(["x"]), jobs.submit(["y"])
    elapse(jobs, 0)
    shutil.rmtree(os.path.join(scripted_setup.database + ".jobs", job.id.hex))
    drain(jobs)

    job = jobs.get_job(job.id)
    assert (job.status, job.reason, job.dropped) == (Status.COMPLETE, Reason.EXITED, 1)
    assert jobs.get_job(other.id).status is Status.COMPLETE


# --- the thread, and forks ----------------------------------------------------------------------


def test_all_stand_ins_are_in_one_named_thread(scripted_setup):
    """It begins with the first supervisor, not before, and ends with `close`."""

    def threads():
        return [one for one in threading.enumerate() if one.name == "jobcore-scripted"]

    with scripted_setup.scripted(Script([5])) as scripted:
        assert threads() == []
        jobs = scripted_setup.manager(scripted, slots=8)
        jobs.submit_many([["x"]] * 8)
        elapse(jobs, 0)
        assert len(scripted.running()) == 8
        assert len(threads()) == 1
        jobs.close()
    assert threads() == []


def test_no_process_is_started(scripted_setup, monkeypatch):
    """Neither for a supervisor nor for a command."""
    for name in ("fork", "posix_spawn", "execve"):
        monkeypatch.setattr(os, name, None)
    monkeypatch.setattr("subprocess.Popen", None)
    jobs, _ = scripted_setup.play(Script(["a"]))

    assert jobs.wait(jobs.submit(["x"]).id, 30).exit_code == 0


def test_a_forked_child_has_no_stand_ins(scripted_setup):
    """They are the parent's, with their locks; the child runs jobs of its own with new ones."""
    jobs, scripted = scripted_setup.play(Script(["a", 5, "b"]), Script(["child"], exit_code=7))
    job = jobs.submit(["x"])
    elapse(jobs, 0)

    def child():
        running, seen = scripted.running(), jobs.get_job(job.id).status
        own = jobs.wait(jobs.submit(["y"]).id, 30)
        jobs.close()
        scripted.close()
        # In the parent it is held, and no copy here.
        ours = [to for to in descriptors().values() if scripted_setup.database in to]
        return running, seen, own.exit_code, own.id, ours

    running, seen, code, own, ours = in_child(child)

    assert (running, seen, code, ours) == ([], Status.RUNNING, 7, [])
    assert scripted.running() == [job.id]
    drain(jobs)
    assert jobs.get_job(job.id).exit_code == 0
    assert jobs.get_job(own).status is Status.ERROR


def test_forks_do_not_disturb_running_jobs(scripted_setup):
    """A host that forks again and again while stand-ins are busy loses no line and no job."""
    jobs, _ = scripted_setup.play(Script(["a", 1, "b"], floods=3000))
    made = [jobs.submit(["x"]) for _ in range(10)]
    forked = threading.Event()
    thread = threading.Thread(target=lambda: (drain(jobs), forked.set()))
    thread.start()
    while not forked.is_set():
        assert in_child(os.getpid) != os.getpid()
    join(thread)

    assert {jobs.get_job(job.id).status for job in made} == {Status.COMPLETE}
    assert {jobs.get_job(job.id).line_count for job in made} == {3002}


def test_an_execution_that_is_closed_leaves_no_verdict(scripted_setup):
    """What a stand-in that dies does is what the kernel does: the lock is free, that is all."""
    jobs, scripted = scripted_setup.play(Script(["a"], hangs=True), slots=1)
    job = jobs.submit(["x"])
    elapse(jobs, 0)
    path = os.path.join(scripted_setup.database + ".jobs", job.id.hex)
    held = execution.Execution  # that it is the product's own is the point
    assert type(scripted._supervisors[0]._execution) is held
    jobs.close()
    scripted.die(job.id)

    assert sorted(os.listdir(path)) == ["ctl", "lock", "run", "spool.0"]
    lock = os.open(os.path.join(path, "lock"), os.O_RDWR)
    assert not job_directory.is_locked(lock)
    os.close(lock)


def test_ticks_are_correct_after_each_clock_jump(scripted_setup):
    """Each time the clock is set back, the next tick moves earlier before any time passes."""
    jobs, _ = scripted_setup.play()
    clock = scripted_setup.clock
    pipeline = jobs.create_pipeline("p", ["true"], schedule="0 * * * *")
    seen = []
    for _ in range(10):
        clock.jump(10 * 24 * 3600)
        clock.jump(-10 * 24 * 3600)
        elapse(jobs, 3600)
        seen.append(len(jobs.list_jobs(pipeline_id=pipeline.id)))
        clock.jump(-5 * 3600)  # further than a tick may be put off
        elapse(jobs, 3600)
        seen.append(len(jobs.list_jobs(pipeline_id=pipeline.id)))

    assert seen == list(range(1, 21))
