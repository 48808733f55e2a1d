"""Waiting and following: woken by commits, idle without them, and over exactly with the job."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from jobcore import (
    ArgumentError,
    CommandError,
    JobDeleted,
    JobManager,
    JobNotRunning,
    Reason,
    Status,
    WaitTimeout,
)
from jobcore.engine.dispatcher import Dispatcher
from jobcore.engine.recovery import Recovery
from jobcore.operations import waiting
from jobcore.operations.waiting import Waiter
from jobcore.storage import reading, transitions
from jobcore.storage.database import Database
from jobcore.testing.parts import parts
from tests.faults.hosts import host, serve
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.jobfiles import sql
from tests.processes import PATIENCE, Child, until
from tests.programs import EXIT_3, SLEEPS, WAITS_FOR_A_FILE, python
from tests.tasks import task
from tests.transactions import transaction

LOOKS = "PRAGMA data_version"


@pytest.fixture
def looks(monkeypatch):
    """Return the looks at anything that waiters took; `until` it has grown."""
    taken = []
    look = Waiter.refresh

    def counted(self, cursor):
        taken.append(cursor)
        return look(self, cursor)

    monkeypatch.setattr(Waiter, "refresh", counted)
    return taken


def in_thread(function):
    """Start a daemon thread that calls `function`; return it and what it will have answered."""
    answers = []

    def call():
        try:
            answers.append(function())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            answers.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread, answers


def wait_for(jobs, job_id):
    return jobs.wait(job_id).status


def follow(jobs, job_id, sequence=0):
    return [(line.sequence, line.raw) for line in jobs.follow(job_id, sequence, unfinished=False)]


# --- idle ---------------------------------------------------------------------------


@pytest.mark.parametrize("do", [wait_for, follow])
@pytest.mark.parametrize("kind", ["queued", "without a process", "in a process"])
def test_idle_waiter_reads_no_table(statements, jobs, scripted, looks, kind, do):
    """Between commits a waiter executes nothing but the question whether there was one."""
    run = scripted() if kind == "in a process" else None
    job = jobs.get_job(run.id) if run else jobs.create_job("TASK")
    if kind == "without a process":
        jobs.start_job(job.id)
    thread, answers = in_thread(partial(do, jobs, job.id))
    until(lambda: len(looks) >= 3, "the first looks")
    before = len(statements)
    until(lambda: len(looks) >= 12, "some idle looks")
    idle = statements[before:]
    if run:
        run.exit()
        run.die()
    elif kind == "queued":
        jobs.cancel_job(job.id)
    else:
        jobs.finish_job(job.id)
    thread.join(PATIENCE)

    assert set(idle) == {LOOKS}
    assert answers in ([Status.COMPLETE], [Status.STOPPED], [[]])


def test_idle_drain_reads_no_table(statements, database, tmp_path, monkeypatch):
    """While a job of the manager runs, a drain asks the tables nothing."""
    asked = []
    is_idle = Dispatcher.is_idle

    def counted(self):
        begun = len(statements)
        answer = is_idle(self)
        mine = [one for one in statements[begun:] if "FROM job" in one]
        asked.append((threading.current_thread().name, mine))
        return answer

    monkeypatch.setattr(Dispatcher, "is_idle", counted)
    # Others' reads in the same moment would be taken for the drain's.
    monkeypatch.setattr("jobcore.tuning.CHORES_PAUSE", 3600)
    go = tmp_path / "go"
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(WAITS_FOR_A_FILE, env={"GO": str(go)})
        assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        thread, answers = in_thread(lambda: jobs.drain(PATIENCE))
        until(lambda: len(asked) >= 10, "some idle looks")
        idle = asked[3:10]
        go.touch()
        thread.join(PATIENCE)
        status = jobs.get_job(job.id).status

    assert [mine for _, mine in idle] == [[]] * 7
    assert (answers, status) == ([None], Status.ERROR)


def test_drain_with_unclaimable_jobs_reads_the_queue_once(jobs, database):
    """Without a commit, the queue does not change, so it is not read again."""
    with JobManager(database, slots=1, python="/nonexistent") as stuck:
        job = stuck.submit(["true"])
        dispatcher = parts(stuck).dispatcher
        until(
            lambda: (
                not dispatcher.is_idle()
                and dispatcher._seen_queued == parts(stuck).database.version()
            ),
            "the look at the queue after the last commit",
        )
        parts(stuck).queue.is_empty = lambda: pytest.fail("the queue was read again")
        again = [dispatcher.is_idle() for _ in range(5)]
        del parts(stuck).queue.is_empty
        jobs.cancel_job(job.id)

        assert again == [False] * 5
        until(dispatcher.is_idle, "an empty queue")


def test_a_drain_runs_what_is_due_when_it_begins(database):
    """A worker that only drains, as from cron, takes schedules and the jobs of dead processes."""
    with JobManager(database, slots=0) as jobs:
        due = jobs.create_pipeline("due", ["true"], schedule="0 0 1 1 *", catch_up="last")
        sql(database, "UPDATE pipeline SET next_tick = ?", parts(jobs).clock.now() - 1_000_000)
        with JobManager(database, slots=1) as cron:
            cron.drain(PATIENCE)
            (job,) = jobs.list_jobs(pipeline_id=due.id)

    assert job.status == Status.COMPLETE


@pytest.mark.parametrize("form", ["drain", "drain_async"])
def test_a_drain_without_slots_waits_for_those_who_run_the_queue(database, tmp_path, form):
    """A manager that only queues waits for all that is queued or runs in another one."""
    go = tmp_path / "go"
    with JobManager(database, slots=0) as queue, JobManager(database, slots=1) as worker:
        jobs = worker.submit_many([WAITS_FOR_A_FILE] * 2, env={"GO": str(go)})
        tasks = [task(queue), queue.create_job("TASK")]  # of a host: they are no queue's
        assert next(queue.follow(jobs[0].id, timeout=PATIENCE)).text == "ready"
        with pytest.raises(WaitTimeout, match="queued or running"):
            queue.drain(0)

        def drain():
            if form == "drain":
                return queue.drain(PATIENCE)
            return asyncio.run(queue.drain_async(PATIENCE))

        thread, answers = in_thread(drain)
        go.touch()
        thread.join(PATIENCE)
        ended = [queue.get_job(job.id).status for job in (*jobs, *tasks)]

    assert answers == [None]
    assert ended == [Status.ERROR, Status.ERROR, Status.RUNNING, Status.QUEUED]


def test_drain_without_slots_names_the_running_jobs(database):
    """After the time-out, the error names the job that another manager runs."""
    with JobManager(database, slots=0) as queue, JobManager(database, slots=1) as worker:
        job = worker.submit(SLEEPS)
        assert next(worker.follow(job.id, timeout=PATIENCE)).text == "ready"
        with pytest.raises(WaitTimeout, match=f"job {job.id} is RUNNING after 0.01 s"):
            queue.drain(0.01)
        worker.stop_job(job.id, grace=0)
        queue.drain(PATIENCE)


def test_several_jobs_are_waited_for_at_once(running_jobs):
    """All are final, in the order of the ids; `wait` for several names what does it."""
    first, second = running_jobs.submit_many([EXIT_3, ["true"]])
    ended = running_jobs.wait_all([second.id, str(first.id), second.id], PATIENCE)

    assert [job.id for job in ended] == [second.id, first.id, second.id]
    assert [job.exit_code for job in ended] == [0, 3, 0]
    assert running_jobs.wait_all([]) == []
    for several in ([first.id, second.id], (first.id,), {first.id}, iter([first.id])):
        with pytest.raises(ValueError, match="wait_all"):
            running_jobs.wait(several)
        with pytest.raises(ArgumentError, match="wait_all"):
            running_jobs.wait_async(several)
    for one in (str(first.id), first.id, None):
        with pytest.raises(ArgumentError, match="wait_all"):
            running_jobs.wait_all(one)


def test_a_job_reports_here_from_its_start_to_its_end(running_jobs):
    """A visit asks about its own job, without going through all that run."""
    job = running_jobs.submit(["sleep", "60"])
    recovery, number = parts(running_jobs).recovery, 1
    with parts(running_jobs).database.read() as connection:
        queued = transitions.find(connection, number)
    running_jobs.wait(job.id, PATIENCE, until="started")
    with parts(running_jobs).database.read() as connection:
        run = transitions.find(connection, number)
    until(lambda: recovery.is_connected(run), "the supervisor's notice")
    assert (set(recovery.connected()), recovery.is_connected(queued)) == ({number}, False)
    running_jobs.stop_job(job.id)
    until(lambda: not recovery.is_connected(run), "its end")

    assert set(recovery.connected()) == set()


def test_the_time_of_a_wait_for_several_is_for_all_of_them(jobs):
    """Each begins with what the ones before it have left."""
    mine = [task(jobs) for _ in range(3)]
    with pytest.raises(WaitTimeout, match=r"RUNNING after 0.02 s"):
        jobs.wait_all([one.id for one in mine], timeout=0.02)


@pytest.mark.parametrize("call", ["get_job", "wait", "history", "stop_job", "result", "logs"])
def test_an_id_however_deeply_nested_is_a_wrong_argument(jobs, call):
    """The error is neither a RecursionError nor JobNotFound."""
    nested = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ArgumentError, match=r"list|one UUID"):
        getattr(jobs, call)(nested)


def test_a_cancelled_job_that_runs_gets_the_grace(running_jobs):
    """`cancel_job` hands on the seconds until the kill."""
    job = running_jobs.submit(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    assert next(running_jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
    running_jobs.cancel_job(job.id, grace=0)
    ended = running_jobs.wait(job.id, PATIENCE)

    assert (ended.status, ended.signal) == (Status.STOPPED, 9)
    with pytest.raises(CommandError, match="grace"):
        running_jobs.cancel_job(job.id, grace=-1)


def test_a_job_that_is_queued_is_not_stopped_but_what_does_is_named(jobs):
    """The error says which call takes it from the queue."""
    job = jobs.create_job("TASK")
    with pytest.raises(JobNotRunning, match="cancel_job"):
        jobs.stop_job(job.id)


def test_fifty_who_wait_for_one_job_look_as_one(jobs, scripted, monkeypatch):
    """In one process one of many followers looks at the file, and into the directory."""
    lookers, visits = [], []
    has_news, refresh = Recovery.has_news, Waiter.refresh
    monkeypatch.setattr(
        Recovery, "has_news", lambda self, run: visits.append(run) or has_news(self, run)
    )
    monkeypatch.setattr(
        Waiter,
        "refresh",
        lambda self, cursor: lookers.append(threading.get_ident()) or refresh(self, cursor),
    )
    run = scripted()
    started = [in_thread(partial(follow, jobs, run.id)) for _ in range(50)]
    until(lambda: len(set(lookers)) == 50, "the first look of each")
    moments = [time.monotonic()]  # however slow the machine is, as much passes as is said here
    with monkeypatch.context() as held:
        for module in (waiting, reading):
            still = SimpleNamespace(monotonic=lambda: moments[-1], sleep=time.sleep)
            held.setattr(module, "time", still)

        def look(count):
            for _ in range(count):
                moments.append(moments[-1] + waiting.FOLLOW_PAUSE)
                enough = len(lookers) + 1
                until(lambda enough=enough: len(lookers) >= enough, "a look")

        look(11)  # those who were about to look have done so
        begun = len(lookers), len(visits)
        look(19)
        # A visit that began before may have taken as long, and none begins meanwhile.
        until(lambda: look(1) or len(visits) > begun[1], "a visit")
        looked, visited = lookers[begun[0] :], len(visits) - begun[1]
    run.write(b"a\n", b"b\n")
    run.exit()
    run.die()
    for thread, _ in started:
        thread.join(PATIENCE)

    assert len(set(looked)) <= 2  # two that begin at the same moment both look
    assert 0 < visited <= len(looked) + 1  # the first visit may belong to the look before
    assert [answers for _, answers in started] == [[[(0, b"a\n"), (1, b"b\n")]]] * 50


def test_of_those_who_wait_for_different_jobs_one_looks_for_commits(jobs, scripted, monkeypatch):
    """The others sleep. It wakes each of them when it has news of its job."""
    lookers = []
    wait = Database.wait_for_change
    monkeypatch.setattr(
        Database,
        "wait_for_change",
        lambda self, *said: lookers.append(threading.get_ident()) or wait(self, *said),
    )
    runs = [scripted() for _ in range(10)]
    started = [in_thread(partial(follow, jobs, run.id)) for run in runs]
    now = time.monotonic()
    with monkeypatch.context() as held:  # no lease ends, however slow the machine is
        still = SimpleNamespace(monotonic=lambda: now, sleep=time.sleep)
        held.setattr(waiting, "time", still)
        until(lambda: len(lookers) >= 60, "its looks")
        looked = lookers[40:60]
    for run in runs:
        run.write(b"a\n")
        run.exit()
        run.die()
    for thread, _ in started:
        thread.join(PATIENCE)

    assert len(set(looked)) <= 2  # two that begin at the same moment both look
    assert [answers for _, answers in started] == [[[(0, b"a\n")]]] * 10


@pytest.mark.parametrize("leaves", ["takes its time", "times out"])
def test_when_the_one_that_looks_leaves_another_one_looks(jobs, scripted, leaves):
    """If the looking waiter leaves, another one looks for all others."""
    run = scripted()
    run.write(b"a\n")
    first = jobs.follow(run.id, unfinished=False, timeout=0.5 if leaves == "times out" else None)
    assert next(first).raw == b"a\n"
    thread, answers = in_thread(lambda: list(first) if leaves == "times out" else next(first))
    watched = parts(jobs).waiter.watched[jobs.get_job(run.id).number]
    until(lambda: watched._holders, "its look")
    others = [in_thread(partial(follow, jobs, run.id)) for _ in range(3)]
    if leaves == "takes its time":
        run.write(b"b\n")  # which it takes, and asks for no more
    thread.join(PATIENCE)
    run.write(b"c\n")
    run.exit()
    run.die()
    for other, _ in others:
        other.join(PATIENCE)

    lines = [b"a\n", b"b\n", b"c\n"] if leaves == "takes its time" else [b"a\n", b"c\n"]
    assert [answers for _, answers in others] == [[list(enumerate(lines))]] * 3
    assert isinstance(answers[0], WaitTimeout) == (leaves == "times out")


# --- woken --------------------------------------------------------------------------


def finish_elsewhere(database, job_id):
    with JobManager(database, slots=0) as other:
        other.append_log(job_id, "last words")
        other.finish_job(job_id)


@pytest.mark.parametrize("do", [wait_for, follow])
def test_a_commit_of_another_process_wakes(jobs, own, database, looks, do):
    """A waiter sees the end by another process through its commit alone."""
    child = Child(finish_elsewhere, database, own.id, held=True)
    thread, answers = in_thread(partial(do, jobs, own.id))
    until(lambda: len(looks) >= 3, "the first looks")
    child.result()
    thread.join(PATIENCE)

    assert answers == [Status.COMPLETE if do is wait_for else [(0, b"last words\n")]]


@pytest.mark.parametrize("do", [wait_for, follow])
def test_a_commit_of_this_process_wakes_at_once(jobs, own, monkeypatch, do):
    """A waiter that looks for others' commits only in an hour hears of ours all the same."""
    asleep = threading.Event()
    wait_for_change = Database.wait_for_change

    def sleep_long(self, seen, _timeout, _pause):
        asleep.set()
        return wait_for_change(self, seen, 3600, 3600)

    monkeypatch.setattr(Database, "wait_for_change", sleep_long)
    thread, answers = in_thread(partial(do, jobs, own.id))
    assert asleep.wait(PATIENCE)
    jobs.finish_job(own.id)
    thread.join(PATIENCE)

    assert answers == [Status.COMPLETE if do is wait_for else []]


def test_foreign_commits_wake_waiters_only_briefly(jobs, own, looks, monkeypatch):
    """However many commits of others there are, a waiter rests between its looks at the tables."""
    naps = []
    monkeypatch.setattr(
        waiting, "time", SimpleNamespace(monotonic=time.monotonic, sleep=naps.append)
    )
    thread, answers = in_thread(partial(wait_for, jobs, own.id))
    until(lambda: looks, "the first look")
    other = jobs.start_job(jobs.create_job("TASK").id)
    for _ in range(20):
        begun = len(looks)
        jobs.append_log(other.id, "noise")
        until(lambda begun=begun: len(looks) > begun, "a look for it")
    jobs.finish_job(own.id)
    thread.join(PATIENCE)

    assert naps
    assert answers == [Status.COMPLETE]


# --- the end ------------------------------------------------------------------------

#: Prints 3,000 numbered lines in bursts of uneven length, and exits 7.
BURSTS = python("""
import sys, time
done = 0
for burst in [1, 7, 500, 2, 90, 1900, 499, 1]:
    sys.stdout.write("".join(f"line {done + n}\\n" for n in range(burst)))
    sys.stdout.flush()
    done += burst
    time.sleep(0.03)  # a pause of the program, not a wait of the test
sys.exit(7)
""")
BURST_LINES = [(n, b"line %d\n" % n) for n in range(3000)]


def test_followers_of_a_killed_hosts_job_settle_it_and_end(database):
    """With the host SIGKILLed amid the output, followers get each line once, and the true end."""
    firsts = [0, 1, 8, 509, 2999, 3000, 10_000]
    with host(serve, database, 1) as killed, JobManager(database, slots=0) as jobs:
        assert killed.hear() == "serving"
        job = jobs.submit(BURSTS)
        started = [in_thread(partial(follow, jobs, job.id, first)) for first in firsts]
        waiting = in_thread(partial(jobs.wait, job.id))
        until(lambda: jobs.get_job(job.id).line_count > 8, "the first lines")
        killed.kill()
        for thread, _ in [*started, waiting]:
            thread.join(PATIENCE)
    (ended,) = waiting[1]

    assert [answers for _, answers in started] == [[BURST_LINES[first:]] for first in firsts]
    assert (ended.status, ended.exit_code, ended.line_count) == (Status.ERROR, 7, 3000)


def test_followers_in_other_processes_end_with_the_job(database):
    """Four processes that follow from different lines get each line once, and end with the job."""

    def read(first):
        with JobManager(database, slots=0) as mine:
            lines = follow(mine, job_id, first)
            return lines, mine.get_job(job_id).status

    with JobManager(database, slots=0) as jobs:
        job_id = jobs.submit(BURSTS).id
    children = [Child(read, first) for first in (0, 3, 600, 2998)]
    with JobManager(database, slots=1) as jobs:
        assert jobs.wait(job_id, timeout=PATIENCE).exit_code == 7
        answers = [child.result() for child in children]

    assert answers == [(BURST_LINES[first:], Status.ERROR) for first in (0, 3, 600, 2998)]


def test_a_dead_supervisors_job_ends_for_its_followers(jobs, scripted):
    """A follower settles the job of a dead supervisor, and gets a line that says so."""
    run = scripted()
    run.started()
    run.write(b"a\n")
    lines = jobs.follow(run.id)
    seen = [next(lines).raw]
    run.die()
    seen += [line.stream for line in lines]

    assert seen == [b"a\n", "system"]
    assert jobs.get_job(run.id).reason is Reason.LOST


def test_failed_import_is_retried_by_the_follower(jobs, scripted, monkeypatch):
    """A follower that cannot write its import pauses, tries again, and misses no line."""
    failures = []
    reconcile = Recovery.reconcile

    def fail_twice(self, run, **named):
        if len(failures) < 2:
            failures.append(run)
            raise OSError(28, "No space left on device")
        return reconcile(self, run, **named)

    run = scripted()
    thread, answers = in_thread(partial(follow, jobs, run.id))
    until(lambda: parts(jobs).waiter.watched, "the follower")
    monkeypatch.setattr(waiting, "IMPORT_RETRY_PAUSE", 0.001)
    monkeypatch.setattr(Recovery, "reconcile", fail_twice)
    run.write(b"a\n")
    run.exit()
    run.die()
    thread.join(PATIENCE)

    assert len(failures) == 2
    assert answers == [[(0, b"a\n")]]


def test_follower_skips_lines_lost_by_damage(jobs, own):
    """Where the file lacks lines that its job has, a follower passes over them."""
    jobs.append_log(own.id, "a")
    with transaction(parts(jobs).database) as connection:
        connection.exec_driver_sql("UPDATE job SET next_sequence = 5")
    jobs.finish_job(own.id)

    assert follow(jobs, own.id) == [(0, b"a\n")]
    assert follow(jobs, own.id, 3) == []


def test_nothing_is_kept_of_who_waited(jobs, scripted):
    """What waiters of one job share is gone with the last of them."""
    run = scripted()
    lines = jobs.follow(run.id)
    run.write(b"a\n")
    next(lines)
    shared = len(parts(jobs).waiter.watched)
    lines.close()

    assert (shared, len(parts(jobs).waiter.watched)) == (1, 0)


# --- deletion -----------------------------------------------------------------------


def read_until_deleted(lines):
    """Return the lines that were read, and how it ended."""
    got = []
    try:
        got.extend((line.sequence, line.raw) for line in lines)
    except JobDeleted:
        return got, "deleted"
    return got, "ended"


@in_rounds(smoke=10, full=200)
def test_a_delete_ends_eight_followers(rounds, jobs):
    """F35: eight followers of a job that is deleted get whole lines, then JobDeleted."""
    read = 0
    for chance in rounds:
        job = jobs.start_job(jobs.create_job("TASK").id)
        expected = []
        firsts = [0, 0, 0, 0, 1, 5, 50, 500]
        readers = [jobs.follow(job.id, first, unfinished=False) for first in firsts]
        started = [in_thread(partial(read_until_deleted, lines)) for lines in readers]
        for _ in range(chance.randrange(1, 20)):
            some = [b"line %d\n" % (len(expected) + n) for n in range(chance.randrange(1, 90))]
            jobs.append_log(job.id, *some)
            expected += some
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.01)  # the moment of the deletion, not a wait
        jobs.delete_job(job.id)
        for thread, _ in started:
            thread.join(PATIENCE)
        numbered = list(enumerate(expected))
        for first, (_, (answer,)) in zip(firsts, started, strict=True):
            got, how = answer
            assert how == "deleted"
            assert got == numbered[first : first + len(got)]
            read += len(got)
        check(jobs)
    assert read  # some of them had begun by then
