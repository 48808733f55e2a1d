"""
Plans: no statement takes longer because of the past, or because of other people's rows.

The statements are counted as they are executed, with their parameters bound: a partial
index that matches a literal does not match a parameter. What is counted are steps of
SQLite's virtual machine, which depend on no clock. The file has 200,000 jobs and
50,000 pipelines.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import sqlite3
import subprocess
from contextlib import closing, contextmanager
from datetime import datetime, timezone

import pytest

from jobcore import FINAL, JobManager, PipelineAlreadyRunning, PipelineCycle, Status, Submission
from jobcore.engine.queue_reader import QueueReader
from jobcore.engine.retention import RetentionChore
from jobcore.engine.scheduler import Scheduler
from jobcore.storage import counts, queue, settlement
from jobcore.storage.database import Database
from jobcore.storage.statement import driver_of
from jobcore.testing import ManualClock
from jobcore.testing.parts import parts

JOBS, PIPELINES = 200_000, 50_000
#: Steps that a statement may take; one that reads the jobs takes a million.
MOST = 30_000
#: Steps that a page of ten jobs, or a count, may take.
FEW = 8_000
#: Steps between two looks at the count: SQLite calls back so often.
GRAIN = 50

NOW = ManualClock().now()
FAR = NOW + 10**12

#: Pipelines by number, in the hex form of their ids. The first three have a history.
BIG, RARE, MARKED = (f"{n:032x}" for n in (1, 2, 3))
PLACE = f"{10**9:032x}"
#: One without jobs.
MOST_ALONE = f"{20:032x}"

#: Jobs: how many, and how they stand. The rare ones are the oldest: a walk meets them last.
KINDS = [
    (1, {"type": "'RARE'", "status": "'ERROR'", "pipeline_id": f"'{BIG}'"}),
    (1, {"type": "'RARE'", "status": "'COMPLETE'", "pipeline_id": f"'{RARE}'"}),
    (60_000, {"type": "'PIPELINE_RUN'", "status": "'COMPLETE'", "pipeline_id": f"'{BIG}'"}),
    (20_000, {"type": "'COMMAND'", "status": "'COMPLETE'"}),
    (60_000, {"type": "'TASK'", "status": "'QUEUED'"}),
    (20_000, {"type": "'COMMAND'", "status": "'QUEUED'", "not_before": str(FAR)}),
    (10_000, {"type": "'COMMAND'", "status": "'QUEUED'", "not_before": str(NOW - 1)}),
    (9_998, {"type": "'COMMAND'", "status": "'QUEUED'"}),
    (20_000, {"type": "'COMMAND'", "status": "'STOPPED'", "deleted_at": "1",
              "pipeline_id": f"'{MARKED}'"}),
]  # fmt: skip
_FACTS = {
    "QUEUED": ("NULL", "NULL", "NULL"),
    "COMPLETE": ("'exited'", "0", "1"),
    "ERROR": ("'exited'", "3", "1"),
    "STOPPED": ("'stopped'", "NULL", "1"),
}


def fill(connection):
    """Write the rows, with the guards of the schema off: they would take most of the time."""
    guards = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    guards = guards.fetchall()
    for name, _ in guards:
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(
        "INSERT INTO workspace (id, name, is_default, created, last_modified) "
        "VALUES (?, 'default', 1, 1, 1)",
        (PLACE,),
    )
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "INSERT INTO pipeline (id, workspace_id, name, folded_name, status, script, max_retries, "
        "schedule, next_tick, tick_offset, created, last_modified, deleted_at) "
        "SELECT printf('%032x', i), ?, 'p' || i, 'p' || i, 'READY', 'true', 0, '0 0 * * *', "
        "? + i, 0, i, i, CASE WHEN i = 3 THEN 1 END FROM n",
        (PIPELINES, PLACE, FAR),
    )
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "INSERT INTO link (pipeline_id, position, source_id) "
        "SELECT printf('%032x', i), 0, printf('%032x', i - 1) FROM n WHERE i % 5",
        (PIPELINES,),
    )
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
        "INSERT INTO skip (pipeline_id, due, recorded, why, count) "
        "SELECT printf('%032x', 1 + i % 2 * 9), i, i, 'missed', 1 FROM n"
    )
    number = 0
    for count, columns in KINDS:
        reason, exit_code, ended = _FACTS[columns["status"].strip("'")]
        values = {"reason": reason, "exit_code": exit_code, "end_time": ended, **columns}
        values["start_time"] = ended
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            f"INSERT INTO job (number, id, workspace_id, attempt, created, spool_offset, "
            f"next_sequence, loose_sequence, loose_bytes, dropped, {', '.join(values)}) "
            f"SELECT i, printf('%032x', i), '{PLACE}', 1, 1, 0, 0, 0, 0, 0, "
            f"{', '.join(values.values())} FROM n",
            (number + 1, number + count),
        )
        number += count
    assert number == JOBS
    connection.execute(
        "INSERT INTO transition (job, at, trigger, to_status, pipeline_id) "
        "SELECT number, 1, 'create', 'QUEUED', pipeline_id FROM job"
    )
    for _, text in guards:
        connection.execute(text)
    counts.count_again(connection)


def made_once(tmp_path_factory, name, make):
    """Return the path of a file that the first worker of a run makes, for all of them."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # which the workers of a run share
    path = place / f"{name}.db"
    is_made = place / f"{name}.made"
    with open(place / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_made.exists():
            make(str(path))
            is_made.touch()
    return str(path)


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """Return the path of a file with all these rows; nothing may open it, only copy it."""
    return made_once(tmp_path_factory, "plans", make_large)


def make_large(path):
    """Make the file; it is closed on return."""
    Database(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -200000")
        connection.execute("BEGIN")
        fill(connection)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class Counter:
    """Counts the steps of each statement of the connections that it watches."""

    def __init__(self):
        self.steps = {}  # by the text of the statement, of its longest execution
        self.total = 0  # of all statements
        self._current, self._count = "", 0

    def watch(self, connection):
        connection.set_trace_callback(self._begin)
        connection.set_progress_handler(self._step, GRAIN)

    def _begin(self, statement):
        # The statements of triggers are told as comments; they belong to what fired them.
        if not statement.startswith("--"):
            self._current, self._count = statement, 0
            self.steps.setdefault(statement, 0)

    def _step(self):
        if self._current.startswith("BEGIN"):
            return  # BEGIN takes no step, but SQLite 3.41 and later count the next parsing here
        self.total += GRAIN
        self._count += GRAIN
        self.steps[self._current] = max(self.steps.get(self._current, 0), self._count)

    def excess(self, most):
        """Return the statements that took more steps than these."""
        return {text[:2000]: steps for text, steps in self.steps.items() if steps > most}


@contextmanager
def watched_copy(original, folder, *, analyzed):
    """Yield a manager without slots of a copy of a file, and the counter of its statements."""
    path = str(folder / "jobs.db")
    for end in ("", ".jobs"):
        subprocess.run(["cp", "-a", original + end, path + end], check=True)
    if analyzed:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("ANALYZE")
    counter = Counter()
    connect = Database.new_connection

    def watch(self):
        connection = connect(self)
        counter.watch(connection)
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "new_connection", watch)
        with JobManager(path, slots=0, clock=ManualClock()) as jobs:
            yield jobs, counter


@pytest.fixture(scope="module", params=["as it is", "after ANALYZE"])
def watched(large, request, tmp_path_factory):
    """Return a manager of the large file, and the counter of its statements."""
    folder = tmp_path_factory.mktemp("watched")
    with watched_copy(large, folder, analyzed=request.param == "after ANALYZE") as found:
        yield found


def run_to(jobs, job, exit_code):
    """Run a job on behalf of its host to its end."""
    jobs.start_job(job.id)
    jobs.append_log(job.id, "a line")
    jobs.report_progress(job.id, 1)
    return jobs.finish_job(job.id, exit_code)


def backlog(jobs, *types):
    """Return what a manager with executors for these types would claim from."""
    postponed = parts(jobs).postponed
    return QueueReader(
        parts(jobs).database,
        parts(jobs).clock,
        types,
        parts(jobs).ownership,
        postponed,
        only_own=False,
    )


def retry(jobs):
    """Fail a job of a pipeline, and cancel the retry that follows from it."""
    pipeline = jobs.create_pipeline("retried", ["true"], max_retries=1)
    run_to(jobs, jobs.create_job(pipeline_id=pipeline.id), 1)
    (again,) = jobs.list_jobs(pipeline_id=pipeline.id, status=Status.QUEUED)
    jobs.cancel_job(again.id)


def trigger(jobs):
    """Complete a job of a pipeline that triggers another one, and one of one that has a history."""
    for pipeline in (RARE, f"{11:032x}"):
        run_to(jobs, jobs.create_job(pipeline_id=pipeline), 0)


def is_refused(jobs):
    """Create a second job of a pipeline that has a history."""
    job = jobs.create_job(pipeline_id=BIG)
    with pytest.raises(PipelineAlreadyRunning):
        jobs.create_job(pipeline_id=BIG)
    jobs.cancel_job(job.id)


def take_due(jobs):
    """Take the ticks of as many pipelines as one transaction takes."""
    due = jobs.create_pipeline("due", ["true"], schedule="* * * * *")
    parts(jobs).clock.advance(60)
    scheduler = Scheduler(parts(jobs).database, parts(jobs).clock)
    for _ in range(3):
        scheduler.tick()
    (job,) = jobs.list_jobs(pipeline_id=due.id)
    jobs.cancel_job(job.id)


def chain(jobs):
    """Make, change, rename and delete pipelines that others trigger."""
    made = jobs.create_pipeline("made", ["true"], triggered_by=["p11", "P12"])
    jobs.update_pipeline(made.id, triggered_by=["p21", "p22"], timeout=3)
    jobs.update_pipeline(made.id, name="renamed")
    with pytest.raises(PipelineCycle):
        jobs.update_pipeline(f"{21:032x}", triggered_by=["renamed"])
    jobs.get_pipeline(made.id)
    jobs.delete_pipeline(made.id)


def workspace(jobs):
    """Make a workspace with a few rows, list them, and delete it."""
    place = jobs.create_workspace("small")
    pipeline = jobs.create_pipeline("p1", ["true"], workspace_id=place.id)
    jobs.create_job(pipeline_id=pipeline.id)
    jobs.list_pipelines(workspace_id=place.id)
    jobs.list_jobs(workspace_id=place.id)
    jobs.count_jobs(workspace_id=place.id)
    jobs.delete_workspace(place.id)


def describe(jobs):
    """Apply a description of a few pipelines beside very many, twice, and delete one of them."""
    described = {"described": {"script": "true", "triggered_by": ["p11", "P12"]}}
    for _ in range(2):
        jobs.apply({"pipelines": described}, workspace_id=PLACE)
    described["described"]["timeout"] = "5m"
    (changed,) = jobs.apply({"pipelines": described})
    jobs.delete_pipeline(changed.pipeline_id)


def retain(jobs):
    """Look for expired jobs among many that stay: they are of other statuses, or the newest."""
    kept = RetentionChore(parts(jobs).database, parts(jobs).remover, parts(jobs).clock)
    for keep, rule in ((1, {"statuses": "STOPPED"}), (3e9, {"count": 1000})):
        jobs.set_retention(keep, **rule)
        for _ in range(5):
            kept.tick()
    jobs.set_retention()


def hand_on(jobs):
    """Read and write the values that jobs hand on."""
    job = jobs.create_job("RARE")
    with parts(jobs).database.read() as connection:
        settlement.results_for(connection, job.number)
    parts(jobs).database.write(lambda connection: settlement.store_state(connection, 1, "{}"))
    jobs.set_pipeline_state(BIG, {"a": 1})
    jobs.get_pipeline_state(BIG)
    jobs.cancel_job(job.id)


def wait_for_few(jobs):
    """Wait for jobs beside a long queue and a long history."""
    made = [jobs.create_job("RARE"), jobs.create_job("RARE")]
    ended = jobs.as_completed([job.id for job in made])
    for job in made:
        run_to(jobs, job, 0)
        next(ended)
    jobs.wait(made[0].id, until="started")


def next_expiry(jobs):
    """Look for the next expiry, as the test kit does."""
    with parts(jobs).database.read() as connection:
        return queue.next_expiry(connection)


LATELY = datetime(2023, 1, 1, tzinfo=timezone.utc)


#: What is called, by what it shows. Each does its work in statements of few steps.
def a_graph(jobs):
    """End jobs that are retried, have hooks, and are waited for; leave nothing in the queue."""
    first = jobs.submit(["true"], name="g", retries=1, on_error=["true"])
    jobs.submit_many(
        [
            Submission(["true"], ref="a", after=[first.id], run_if="failed", on_stopped=["true"]),
            Submission(["true"], after=["a"]),
        ]
    )
    jobs.start_job(first.id)
    jobs.finish_job(first.id, 1)
    (retry,) = jobs.list_jobs(name="g", status="QUEUED")
    jobs.start_job(retry.id)
    jobs.finish_job(retry.id, 1)
    for job in jobs.list_jobs(status="QUEUED", limit=4):
        if job.hook_of is not None or job.run_if is not None:
            jobs.cancel_job(job.id)


def a_set(jobs):
    """Complete a set of runs that a pipeline requires."""
    sources = [jobs.create_pipeline(name, ["true"]) for name in ("set a", "set b")]
    whole = jobs.create_pipeline("set", ["true"], requires=["set a", "set b"])
    for source in sources:
        job = jobs.create_job(pipeline_id=source.id)
        jobs.start_job(job.id)
        jobs.finish_job(job.id)
    for pipeline in (*sources, whole):
        jobs.delete_pipeline(pipeline.id)


CALLS = {
    "a graph of jobs": a_graph,
    "a set of pipelines": a_set,
    "a page of all": lambda jobs: jobs.list_jobs(),
    "the jobs that a job waits for": lambda jobs: jobs.list_upstream(f"{JOBS - 40_000:032x}"),
    "the jobs that start next": lambda jobs: jobs.list_upcoming(limit=10),
    "the next page": lambda jobs: jobs.list_jobs(before=100_000),
    "jobs of a pipeline": lambda jobs: jobs.list_jobs(pipeline_id=BIG),
    "failed jobs of a pipeline": lambda jobs: jobs.list_jobs(pipeline_id=BIG, status="ERROR"),
    "running jobs of a pipeline": lambda jobs: jobs.list_jobs(pipeline_id=BIG, status="RUNNING"),
    "final jobs of a pipeline": lambda jobs: jobs.list_jobs(pipeline_id=BIG, status=FINAL),
    "failed jobs of a workspace": lambda jobs: jobs.list_jobs(workspace_id=PLACE, status="ERROR"),
    "jobs of a workspace": lambda jobs: jobs.list_jobs(workspace_id=PLACE),
    "jobs of a rare type": lambda jobs: jobs.list_jobs(type="RARE"),
    "jobs of types": lambda jobs: jobs.list_jobs(type=["RARE", "TASK", "NONE"]),
    "failed jobs of a type": lambda jobs: jobs.list_jobs(type="RARE", status="ERROR"),
    "failed jobs": lambda jobs: jobs.list_jobs(status="ERROR"),
    "jobs of a rare type in a workspace": lambda jobs: jobs.list_jobs(
        workspace_id=PLACE, type="RARE"
    ),
    "jobs of many types": lambda jobs: jobs.list_jobs(type=[f"T{n}" for n in range(150)]),
    "jobs with a name": lambda jobs: jobs.list_jobs(name="n"),
    "jobs with a pattern": lambda jobs: jobs.list_jobs(name="n*", order="duration"),
    "jobs with a key": lambda jobs: jobs.list_jobs(key="k", status="QUEUED", order="ended"),
    "jobs of a group": lambda jobs: jobs.list_jobs(group="g", type="TASK"),
    "jobs that ended lately": lambda jobs: jobs.list_jobs(ended_since=LATELY, status="ERROR"),
    "jobs that ended early": lambda jobs: jobs.list_jobs(ended_until=LATELY, status="ERROR"),
    "new jobs": lambda jobs: jobs.list_jobs(created_since=LATELY, order="started"),
    "jobs by reason": lambda jobs: jobs.list_jobs(reason="timeout", status="ERROR"),
    "lost jobs, the last first": lambda jobs: jobs.list_jobs(reason="lost", order="ended"),
    "jobs with rare exit codes": lambda jobs: jobs.list_jobs(exit_code=[1, 7], order="duration"),
    "jobs by exit code": lambda jobs: jobs.list_jobs(exit_code=3, pipeline_id=BIG),
    "jobs by end": lambda jobs: jobs.list_jobs(order="ended"),
    "jobs of a pipeline by duration": lambda jobs: jobs.list_jobs(
        order="duration", pipeline_id=RARE
    ),
    "jobs by duration": lambda jobs: jobs.list_jobs(order="duration"),
    "jobs by start": lambda jobs: jobs.list_jobs(order="started"),
    "counts by name": lambda jobs: jobs.count_jobs(name="n*"),
    "counts by reason": lambda jobs: jobs.count_jobs(reason="timeout"),
    "many stops": lambda jobs: jobs.stop_jobs(group="g"),
    "many cancellations": lambda jobs: [
        jobs.submit_many([["true"]] * 5, group="g"),
        jobs.cancel_jobs(group="g"),
    ],
    "many deletions": lambda jobs: jobs.delete_jobs(group="g"),
    "many retries": lambda jobs: [
        jobs.cancel_job(jobs.submit(["true"], name="r").id),
        jobs.cancel_job(jobs.retry_jobs(name="r")[0].id),
    ],
    "counts": lambda jobs: jobs.count_jobs(),
    "counts of a workspace": lambda jobs: jobs.count_jobs(workspace_id=PLACE, type="TASK"),
    "counts of a pipeline": lambda jobs: jobs.count_jobs(pipeline_id=BIG, status=FINAL),
    "events of a pipeline": lambda jobs: list(jobs.events(pipeline_id=RARE)),
    "the newest events": lambda jobs: list(jobs.events(JOBS - 10)),
    "skips": lambda jobs: jobs.skips(BIG),
    "the queue": lambda jobs: backlog(jobs, "COMMAND", "RARE", "FUNCTION").look(8, 8),
    "a queue of others": lambda jobs: backlog(jobs, "RARE", "FUNCTION").look(8, 8),
    "an empty queue": lambda jobs: backlog(jobs, "RARE").is_empty(),
    "the next delayed job": lambda jobs: backlog(jobs, "COMMAND", "RARE").next_due(),
    "a claim of a task": lambda jobs: jobs.finish_job(jobs.claim_job("TASK").id),
    "a claim of nothing": lambda jobs: jobs.claim_job("NONE", timeout=0),
    "the ticks": take_due,
    "the second sweep": lambda jobs: [parts(jobs).recovery.sweep() for _ in range(3)],
    "a job": lambda jobs: run_to(jobs, jobs.create_job("RARE"), 0),
    "a job of a pipeline": lambda jobs: run_to(jobs, jobs.create_job(pipeline_id=RARE), 1),
    "a job that is in the way": is_refused,
    "a retry": retry,
    "a trigger": trigger,
    "chains": chain,
    "a workspace": workspace,
    "a description": describe,
    "retention": retain,
    "statistics": lambda jobs: jobs.statistics(),
    "a deletion": lambda jobs: jobs.delete_job(jobs.submit(["true"]).id),
    "a cancellation": lambda jobs: jobs.cancel_job(jobs.submit(["true"], pipeline_id=BIG).id),
    "a key": lambda jobs: [jobs.submit(["true"], key="k") for _ in range(2)],
    "a key that is free again": lambda jobs: [
        jobs.cancel_job(jobs.submit(["true"], key="f").id) for _ in range(2)
    ],
    "many keys": lambda jobs: [
        jobs.submit_many([Submission(["true"], key=f"k{n}") for n in range(10)]) for _ in range(2)
    ],
    "an expiry": lambda jobs: [
        jobs.submit(["true"], expires=0),
        next_expiry(jobs),
        parts(jobs).expiry.tick(),
    ],
    "a change": lambda jobs: jobs.update_job(
        jobs.submit(["true"]).id, priority=3, name="n", timeout=5
    ),
    "many": lambda jobs: jobs.submit_many([["true"]] * 50),
    "values that are handed on": hand_on,
    "what a job uses": lambda jobs: jobs.usage(f"{5:032x}"),
    "the end of many": lambda jobs: jobs.wait_all([f"{n:032x}" for n in range(1, 60)]),
    "the end of few": wait_for_few,
    "old skips": lambda jobs: jobs.prune(10, pipeline_id=f"{10:032x}", keep=10),
}


def test_statistics_are_dropped_while_others_have_the_file_open(database):
    """After the next opening, another program's ANALYZE affects no plan."""
    with JobManager(database, slots=0) as jobs:
        jobs.create_job("TASK")
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("ANALYZE")
            assert connection.execute("SELECT count(*) FROM sqlite_stat1").fetchone() > (0,)
            connection.execute("BEGIN IMMEDIATE")
            JobManager(database, slots=0).close()  # does not wait
            connection.execute("ROLLBACK")
            JobManager(database, slots=0).close()
            found = "SELECT name FROM sqlite_master WHERE name LIKE 'sqlite_stat%'"
            assert connection.execute(found).fetchall() == []
        assert [job.type for job in jobs.list_jobs()] == ["TASK"]


@pytest.mark.parametrize("call", CALLS)
def test_no_statement_grows_with_history_or_with_others(watched, call):
    """Each statement of each call takes few steps, in a file of 200,000 jobs."""
    jobs, counter = watched
    counter.steps.clear()
    CALLS[call](jobs)

    assert counter.steps != {}
    assert counter.excess(MOST) == {}


def test_empty_queue_is_found_without_the_history(watched):
    """The end of a job asks whether any job is queued: in few steps also where none is."""
    jobs, counter = watched
    steps = []

    def ask(connection):
        driver_of(connection).execute("DELETE FROM job WHERE status = 'QUEUED'")
        counter.steps.clear()
        assert not queue.has_any(connection)
        steps.append(max(counter.steps.values()))
        raise InterruptedError("to take it back")

    with pytest.raises(InterruptedError):
        parts(jobs).database.write(ask)

    assert steps < [MOST]


@pytest.mark.parametrize(
    "chosen", [{"workspace_id": "other"}, {"status": "ERROR"}, {"type": "NONE"}], ids=str
)
def test_scan_limit_bounds_a_whole_call_of_events(watched, chosen):
    """However few of 200,000 events match, the call ends, and its cursor moves on."""
    jobs, counter = watched
    if "workspace_id" in chosen:
        chosen = {"workspace_id": jobs.create_workspace("other by chance").id}
    found = jobs.events(1000, scan_limit=600, **chosen)
    counter.total = 0

    assert list(found) == []
    assert found.after == 1600
    assert 0 < counter.total < MOST


#: What `list_jobs` and `count_jobs` can be narrowed to; each has values that few jobs have.
FILTERS = {
    "workspace_id": (None, PLACE, "other"),
    "pipeline_id": (None, BIG, MOST_ALONE),
    "status": (None, "ERROR", ["RUNNING", "STOPPED"], list(FINAL)),
    "type": (None, "RARE", ["RARE", "NONE", "TASK"], "PIPELINE_RUN"),
}


@pytest.mark.parametrize("before", [None, 1000])
@pytest.mark.parametrize("place", FILTERS["workspace_id"])
def test_every_filter_costs_what_it_shows(watched, place, before):
    """A page and a count of every combination of filters take few steps."""
    jobs, counter = watched
    if place == "other":
        found = [one for one in jobs.list_workspaces() if one.name == "other"]
        place = (found or [jobs.create_workspace("other")])[0].id
    counter.steps.clear()
    for line, status, kind in itertools.product(*list(FILTERS.values())[1:]):
        filters = {"workspace_id": place, "pipeline_id": line, "status": status, "type": kind}
        jobs.list_jobs(**filters, before=before, limit=10)
        jobs.count_jobs(**filters)

    assert counter.steps != {}
    assert counter.excess(FEW) == {}
