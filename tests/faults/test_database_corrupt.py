"""A damaged database: whoever asks is told what it is, or answered; running jobs go on."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import statistics
import time
from contextlib import closing

import pytest

from jobcore import DatabaseCorrupt, JobcoreError, JobManager, Status, StoreError
from jobcore.engine import remover
from jobcore.operations import doctor
from jobcore.testing.parts import parts
from tests.faults.rounds import in_rounds
from tests.jobfiles import sql
from tests.processes import PATIENCE, until
from tests.programs import PRINTS_UNTIL

pytestmark = pytest.mark.usefixtures("warm_supervisors")

PAGE = 4096  # bytes
BUSY = 0.2  # seconds
SECRET = "canary-of-a-secret"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Return a folder with a database that has something of everything, and what is in it."""
    folder = tmp_path_factory.mktemp("sample")
    database = str(folder / "jobs.db")
    with JobManager(database, slots=2) as jobs:
        pipeline = jobs.create_pipeline("p", ["true"], properties={"a": 1}, env={"KEY": SECRET})
        task = jobs.start_job(jobs.create_job("TASK", name="n" * 50, data={"x": [1]}).id)
        jobs.append_log(task.id, *[os.urandom(30).hex() for _ in range(2000)])
        jobs.report_progress(task.id, 1, 2, "half")
        function = jobs.submit_function(statistics.quantiles, [3, 1, 4, 1, 5], n=2)
        ended = jobs.submit(["sh", "-c", "seq 2000; exit 3"], env={"KEY": SECRET})
        for job in (function, ended, jobs.create_job(pipeline_id=pipeline.id)):
            jobs.wait(job.id, PATIENCE)
        queued = jobs.submit(["true"], type="LATER", env={"KEY": SECRET})
        for number in range(40):
            jobs.create_job("X", name="y" * 200, data={"number": number})
    return folder, (task, function, ended, queued, pipeline)


def page(data, chance, count=1, filled_with=None):
    for _ in range(count):
        begin = chance.randrange(len(data) // PAGE) * PAGE
        data[begin : begin + PAGE] = filled_with or chance.randbytes(PAGE)


def bits(data, chance):
    for _ in range(chance.choice([1, 30, 300])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def text(data, chance):
    """Change what SQLite does not look at: ids, JSON, names and statuses."""
    for _ in range(chance.choice([300, 3000])):
        at = chance.randrange(100, len(data))
        if 32 <= data[at] < 127:
            data[at] = chance.choice(b'09azAZ{}"\xff')


def truncate(data, chance):
    del data[chance.randrange(len(data)) :]


def header(data, chance):
    begin = chance.randrange(96)
    data[begin : begin + 4] = chance.randbytes(4)


def noise(data, chance):
    data[:] = chance.randbytes(len(data))


DAMAGES = {
    "a page": page,
    "pages": lambda data, chance: page(data, chance, 5),
    "zeros": lambda data, chance: page(data, chance, 1, bytes(PAGE)),
    "bits": bits,
    "text": text,
    "truncated": truncate,
    "header": header,
    "noise": noise,
}


def calls(jobs, task, function, ended, queued, pipeline):
    """Return every way to ask a manager, and then to change something, by name."""
    found = {}
    for job in (task, function, ended, queued):
        found |= {
            f"get {job.number}": lambda job=job: jobs.get_job(job.id),
            f"logs {job.number}": lambda job=job: list(jobs.logs(job.id)),
            f"text {job.number}": lambda job=job: list(jobs.log_text(job.id, 10)),
            f"tail {job.number}": lambda job=job: list(jobs.tail(job.id, 5)),
            f"follow {job.number}": lambda job=job: list(jobs.follow(job.id, timeout=0.0)),
            f"history {job.number}": lambda job=job: jobs.history(job.id),
        }
    return found | {
        "result": lambda: jobs.result(function.id),
        "list": lambda: jobs.list_jobs(limit=1000),
        "list of a kind": lambda: jobs.list_jobs(type="X", status="QUEUED"),
        "list of a workspace": lambda: jobs.list_jobs(workspace_id=task.workspace_id),
        "count": jobs.count_jobs,
        "events": lambda: list(jobs.events()),
        "pipelines": jobs.list_pipelines,
        "pipeline": lambda: jobs.get_pipeline(pipeline.id),
        "workspaces": jobs.list_workspaces,
        "skips": lambda: jobs.skips(pipeline.id),
        "check": jobs.check,
        "recover": jobs.recover,
        "preview": lambda: jobs.prune(0, dry_run=True),
        "drain": lambda: jobs.drain(0),
        "submit": lambda: jobs.submit(["true"], type="LATER"),
        "many": lambda: jobs.submit_many([["true"]] * 3, type="LATER"),
        "create": lambda: jobs.create_job(pipeline_id=pipeline.id),
        "append": lambda: jobs.append_log(task.id, "x"),
        "report": lambda: jobs.report_progress(task.id, 2),
        "cancel": lambda: jobs.cancel_job(queued.id),
        "retry": lambda: jobs.retry_job(ended.id),
        "stop": lambda: jobs.stop_job(task.id),
        "update": lambda: jobs.update_pipeline(pipeline.id, name="z"),
        "delete": lambda: jobs.delete_job(ended.id),
        "prune": lambda: jobs.prune(0),
        "delete pipeline": lambda: jobs.delete_pipeline(pipeline.id),
        "delete workspace": lambda: jobs.delete_workspace(task.workspace_id),
    }


@in_rounds(smoke=15, full=200)
def test_damage_is_typed_or_not_noticed(tmp_path, sample, rounds):
    """No call ends with another error than jobcore's, shows a secret, or takes for ever."""
    folder, facts = sample
    database = str(tmp_path / "jobs.db")
    whole = (folder / "jobs.db").read_bytes()
    outcomes, wrong = set(), []
    for chance in rounds:
        shutil.rmtree(tmp_path)
        shutil.copytree(folder, tmp_path)
        os.chmod(tmp_path / "jobs.db.jobs", 0o700)
        kind = chance.choice(list(DAMAGES))
        data = bytearray(whole)
        DAMAGES[kind](data, chance)
        with open(database, "wb") as file:
            file.write(data)
        begun = time.monotonic()
        try:
            jobs = JobManager(database, slots=0, busy_timeout=BUSY)
        except StoreError as error:
            outcomes.add(type(error).__name__)
            with open(database, "rb") as file:
                assert file.read() == data  # it is as it was: nobody repairs what he cannot read
            found = doctor.examine(database)
            assert "wrong" in {one.verdict for one in found}, (kind, found)
            continue
        with jobs:
            for name, call in calls(jobs, *facts).items():
                try:
                    call()
                except JobcoreError as error:
                    outcomes.add(type(error).__name__)
                    if SECRET in str(error):
                        wrong.append(f"{kind}, {name}: {error!r}")
                except Exception as error:  # noqa: BLE001 - which is what must not be
                    wrong.append(f"{kind}, {name}: {error!r}")
        assert time.monotonic() - begun < 10 * PATIENCE

    assert wrong == []
    assert "DatabaseCorrupt" in outcomes


STORED = {
    "an id": ("job", "id = 'x' WHERE number = 7"),
    "an id that is a path": (
        "job",
        (
            "id = '../../etc/passwd', status = 'RUNNING', token = 'x', start_time = created "
            "WHERE number = 7"
        ),
    ),
    "a status": ("job", "status = 'GONE'"),
    "JSON": ("job", "data = '{'"),
    "a command": ("pipeline", "command = '{}'"),
    "a command that is no JSON": ("pipeline", f"command = '{SECRET}'"),
    "bytes that are no text": ("job", f"name = CAST(x'ff' || '{SECRET}' AS TEXT)"),
    "a time beyond all times": ("job", "created = 9000000000000000000"),
    "a text for a time": ("job", f"created = '{SECRET}'"),
    "a text for a number": ("job", f"cpu_us = '{SECRET}'"),
    "properties": ("pipeline", "properties = '{'"),
    "a segment": ("log_segment", "data = x'00'"),
    "half a segment": ("log_segment", "data = substr(data, 1, 300)"),
    "a segment with something behind it": (
        "log_segment",
        "data = CAST(data || x'00' AS BLOB), compressed = 0",
    ),
}


@pytest.mark.parametrize("what", STORED)
def test_invalid_stored_value_is_reported_as_damage(tmp_path, sample, what):
    """A value that SQLite reads but jobcore cannot use is reported without its text."""
    folder, facts = sample
    shutil.copytree(folder, tmp_path / "copy")
    database = str(tmp_path / "copy" / "jobs.db")
    table, change = STORED[what]
    for (name,) in sql(database, "SELECT name FROM sqlite_master WHERE type = 'trigger'"):
        sql(database, f"DROP TRIGGER {name}")
    ignoring_checks(database, f"UPDATE {table} SET {change}")
    told, wrong = [], []
    with JobManager(database, slots=0, busy_timeout=BUSY) as jobs:
        for name, call in calls(jobs, *facts).items():
            try:
                call()
            except DatabaseCorrupt as error:
                told.append(str(error))
            except JobcoreError:
                pass  # a job that is not found, say
            except Exception as error:  # noqa: BLE001 - which is what must not be
                wrong.append(f"{name}: {error!r}")
        told += jobs.list_damaged_rows()  # what lists leave out, and deleting removes

    assert wrong == []
    assert told
    assert not [one for one in told if SECRET in one]


def ignoring_checks(database, statement):
    """Execute a statement whatever the table's rules say."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(statement)


def test_a_number_far_away_does_not_keep_pruning_busy(jobs, database):
    """Jobs are pruned from one to the next, however far apart damage has put their numbers."""
    first, last = jobs.create_job("TASK"), jobs.create_job("TASK")
    for job in (first, last):
        jobs.cancel_job(job.id)
    for (name,) in sql(database, "SELECT name FROM sqlite_master WHERE type = 'trigger'"):
        sql(database, f"DROP TRIGGER {name}")
    ignoring_checks(database, f"UPDATE job SET number = {2**62} WHERE number = {last.number}")

    assert [job.number for job in jobs.prune(0, dry_run=True)] == [first.number, 2**62]
    assert jobs.prune(0) == 2


def test_a_job_ends_though_its_log_is_damaged(jobs, database):
    """Damaged segments of a log let its job end; readers of the log get an error."""
    task = jobs.start_job(jobs.create_job("TASK").id)
    jobs.append_log(task.id, "first")
    sql(database, "UPDATE log_segment SET data = x'00'")
    jobs.append_log(task.id, "second")

    assert jobs.finish_job(task.id, 0).status is Status.COMPLETE
    assert [line.text for line in jobs.logs(task.id, 1)] == ["second"]
    with pytest.raises(DatabaseCorrupt, match="line 0"):
        list(jobs.logs(task.id))


def test_running_jobs_do_not_notice_a_damaged_database(tmp_path):
    """Commands print on into their spools; put back, the database gets every line and the end."""
    database = str(tmp_path / "jobs.db")
    go = str(tmp_path / "go")
    with JobManager(database, slots=2, busy_timeout=BUSY) as jobs:
        running = [jobs.submit([*PRINTS_UNTIL, go]) for _ in range(2)]
        for job in running:
            until(lambda job=job: jobs.get_job(job.id).line_count > 100, "some lines")
    shutil.copy(database, tmp_path / "whole")
    with open(database, "r+b") as file:
        for begin in range(PAGE, os.path.getsize(database), PAGE):
            file.seek(begin)
            file.write(random.Random(begin).randbytes(PAGE))
    spools = [f"{database}.jobs/{job.id.hex}/spool.0" for job in running]
    sizes = [os.path.getsize(spool) for spool in spools]
    for _ in range(3):
        with pytest.raises(DatabaseCorrupt):
            JobManager(database, slots=2)
    assert "wrong" in {one.verdict for one in doctor.examine(database)}
    until(
        lambda: all(os.path.getsize(spools[n]) > sizes[n] + 1000 for n in range(2)), "more output"
    )
    open(go, "x").close()
    until(
        lambda: all(os.path.exists(f"{os.path.dirname(spool)}/exit") for spool in spools),
        "the ends of the commands",
    )
    os.replace(tmp_path / "whole", database)
    with JobManager(database, slots=0) as jobs:
        ended = [jobs.wait(job.id, PATIENCE) for job in running]
        logs = [[line.text for line in jobs.logs(job.id)] for job in running]

    assert [(job.status, job.exit_code) for job in ended] == [(Status.ERROR, 5)] * 2
    for log in logs:
        assert log == [*(f"line {n}" for n in range(len(log) - 1)), "last"]


def test_a_deletion_waits_for_no_job_that_damage_hides(tmp_path, monkeypatch):
    """A job that is hidden and was not found to be cancelled is removed, not waited for."""

    def hide(connection, number, *, now):
        connection.exec_driver_sql("UPDATE job SET deleted_at = ? WHERE number = ?", (now, number))

    with JobManager(tmp_path / "jobs.db", slots=0, busy_timeout=BUSY) as jobs:
        pipeline = jobs.create_pipeline("x", command=["true"])
        jobs.create_job(pipeline_id=pipeline.id)
        monkeypatch.setattr(remover, "hide", hide)

        jobs.delete_pipeline(pipeline.id)

        assert jobs.list_pipelines() == []
    assert sql(parts(jobs).database.path, "SELECT number FROM job") == []
