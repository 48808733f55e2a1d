"""Wrong arguments: what says what to run is a CommandError, all else an ArgumentError."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import pytest

from jobcore import ArgumentError, CommandError, JobManager
from jobcore.engine.launcher import ProcessLauncher

NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**30
#: More digits than a float has room for.
DIGITS = 10**400


class Bytes(os.PathLike):
    """A path of bytes, which is a path nonetheless."""

    def __fspath__(self):
        """Return the path."""
        return b"/tmp/jobs.db"

    def __repr__(self):
        """Return a name that is the same in every process."""
        return "Bytes()"


def nested(levels):
    """Return a list in a list, of so many levels."""
    return [nested(levels - 1)] if levels > 1 else []


def refusal(call):
    """Return the error of a call that is to be refused."""
    with pytest.raises(ValueError) as refused:
        call()
    return refused.value


@pytest.mark.parametrize(
    "call",
    [
        lambda jobs: jobs.submit(5),
        lambda jobs: jobs.submit(None),
        lambda jobs: jobs.submit(["true"], type=None),
        lambda jobs: jobs.submit(["true"], type=5),
        lambda jobs: jobs.submit(["true"], type="\ud800"),
        lambda jobs: jobs.submit(["true"], name=5),
        lambda jobs: jobs.submit(["true"], name=b"x"),
        lambda jobs: jobs.submit(["true"], data={1}),
        lambda jobs: jobs.create_job(data={"half a surrogate": "\ud800"}),
        lambda jobs: jobs.create_job(data={"\udcff": 1}),
        lambda jobs: jobs.submit(["true"], data=nested(101)),
        lambda jobs: jobs.create_workspace("shop", properties={"name": "\ud800"}),
        lambda jobs: jobs.submit(["true"], not_before="x"),
        lambda jobs: jobs.submit(["true"], not_before=-5),
        lambda jobs: jobs.submit(["true"], not_before=1.8e9),  # a time in seconds since 1970
        lambda jobs: jobs.submit(["true"], not_before=datetime(2030, 1, 1)),  # noqa: DTZ001
        lambda jobs: jobs.submit(["true"], not_before=datetime.now(timezone.utc).date()),
        lambda jobs: jobs.submit_many(5),
        lambda jobs: jobs.submit_many(None),
        lambda jobs: jobs.submit_many("ab"),
        lambda jobs: jobs.submit_many([["true"], 5]),
        lambda jobs: jobs.submit_many([["true"]], type=None),
        lambda jobs: jobs.create_job(None),
        lambda jobs: jobs.create_job(command=5),
        lambda jobs: jobs.create_workspace(None),
        lambda jobs: jobs.create_workspace("w", properties=[1]),
        lambda jobs: jobs.create_workspace("w", properties=5),
        lambda jobs: jobs.update_workspace(jobs.get_workspace().id, properties=[1]),
        lambda jobs: jobs.update_workspace(jobs.get_workspace().id, name=None),
        lambda jobs: jobs.create_pipeline(None, ["true"]),
        lambda jobs: jobs.create_pipeline("p", 5),
        lambda jobs: jobs.create_pipeline("p", ["true"], properties=5),
        lambda jobs: jobs.create_pipeline("p", ["true"], triggered_by=5),
        lambda jobs: jobs.create_pipeline("p", ["true"], triggered_by=[5]),
        lambda jobs: jobs.create_pipeline("p", script=5),
        lambda jobs: jobs.create_pipeline("p", ["true"], timeout=NAN),
        lambda jobs: jobs.create_pipeline("p", ["true"], max_retries="x"),
    ],
)
def test_invalid_command_raises_command_error(jobs, call):
    """Each invalid argument of a command is a CommandError, and nothing is created."""
    with pytest.raises(CommandError):
        call(jobs)

    assert (jobs.list_jobs(), jobs.list_pipelines()) == ([], [])


@pytest.mark.parametrize(
    "call",
    [
        lambda jobs, _job_id: jobs.list_jobs(limit=-1),
        lambda jobs, _job_id: jobs.list_jobs(limit=None),
        lambda jobs, _job_id: jobs.list_jobs(limit=1.5),
        lambda jobs, _job_id: jobs.list_jobs(before="x"),
        lambda jobs, _job_id: jobs.list_jobs(before=1.5),
        lambda jobs, _job_id: jobs.list_jobs(before=True),
        lambda jobs, _job_id: jobs.list_jobs(status=5),
        lambda jobs, _job_id: jobs.list_jobs(status="X"),
        lambda jobs, _job_id: jobs.list_jobs(status=[5]),
        lambda jobs, _job_id: jobs.list_jobs(status=[[]]),
        lambda jobs, _job_id: jobs.list_jobs(type=5),
        lambda jobs, _job_id: jobs.list_jobs(type=b"x"),
        lambda jobs, _job_id: jobs.list_jobs(type=[5]),
        lambda jobs, _job_id: jobs.list_jobs(type="\ud800"),
        lambda jobs, _job_id: jobs.count_jobs(status=5),
        lambda jobs, _job_id: jobs.count_jobs(type=5),
        lambda jobs, job_id: jobs.logs(job_id, -1),
        lambda jobs, job_id: jobs.logs(job_id, "x"),
        lambda jobs, job_id: jobs.logs(job_id, limit=-1),
        lambda jobs, job_id: jobs.logs(job_id, limit="x"),
        lambda jobs, job_id: jobs.log_text(job_id, -1),
        lambda jobs, job_id: jobs.log_ndjson(job_id, 1.5),
        lambda jobs, job_id: jobs.tail(job_id, -1),
        lambda jobs, job_id: jobs.tail(job_id, None),
        lambda jobs, job_id: jobs.follow(job_id, -1),
        lambda jobs, job_id: jobs.follow(job_id, timeout=NAN),
        lambda jobs, job_id: jobs.follow(job_id, timeout="x"),
        lambda jobs, job_id: jobs.wait(job_id, NAN),
        lambda jobs, job_id: jobs.wait(job_id, "x"),
        lambda jobs, job_id: jobs.wait(job_id, True),
        lambda jobs, _job_id: jobs.drain(NAN),
        lambda jobs, _job_id: jobs.drain("x"),
        lambda jobs, job_id: jobs.append_log(job_id, 5),
        lambda jobs, job_id: jobs.append_log(job_id, "x", None),
        lambda jobs, job_id: jobs.finish_job(job_id, 1.5),
        lambda jobs, job_id: jobs.finish_job(job_id, HUGE),
        lambda jobs, job_id: jobs.report_progress(job_id, -1),
        lambda jobs, job_id: jobs.report_progress(job_id, NAN),
        lambda jobs, job_id: jobs.report_progress(job_id, INFINITE),
        lambda jobs, job_id: jobs.report_progress(job_id, DIGITS),
        lambda jobs, job_id: jobs.report_progress(job_id, "1"),
        lambda jobs, job_id: jobs.report_progress(job_id, True),
        lambda jobs, job_id: jobs.report_progress(job_id, None),
        lambda jobs, job_id: jobs.report_progress(job_id, 1, -1),
        lambda jobs, job_id: jobs.report_progress(job_id, 1, 2, 5),
        lambda jobs, job_id: jobs.report_progress(job_id, 1, 2, b"x"),
        lambda jobs, job_id: jobs.report_progress(job_id, 1, 2, "\ud800"),
        lambda jobs, job_id: jobs.skips(job_id, limit=-1),
    ],
)
def test_any_other_wrong_argument_is_an_argument_error(jobs, call):
    """It is refused at the call, not at the first next(), as an ArgumentError."""
    job = jobs.create_job("TASK")
    jobs.start_job(job.id)

    assert type(refusal(lambda: call(jobs, job.id))) is ArgumentError
    assert list(jobs.logs(job.id)) == []


@pytest.mark.parametrize("grace", [NAN, -1, "x", True])
def test_a_wrong_grace_is_a_command_error(jobs, grace):
    """The grace of `stop_job` is refused as that of a Command is."""
    job = jobs.create_job("TASK")

    with pytest.raises(CommandError, match="grace"):
        jobs.stop_job(job.id, grace=grace)


@pytest.mark.parametrize("large", [2**63 - 1, 2**63, HUGE, DIGITS])
def test_numbers_beyond_sqlite_are_accepted(jobs, large):
    """There are no lines that far, and no more jobs or lines than there are."""
    job = jobs.create_job("TASK")
    jobs.start_job(job.id)
    jobs.append_log(job.id, "one")

    assert [one.id for one in jobs.list_jobs(limit=large)] == [job.id]
    assert [one.id for one in jobs.list_jobs(before=large)] == [job.id]
    assert jobs.list_jobs(before=-large) == []
    assert list(jobs.logs(job.id, large)) == []
    assert [line.text for line in jobs.logs(job.id, 0, large)] == ["one"]
    assert [line.text for line in jobs.tail(job.id, large)] == ["one"]
    assert jobs.skips(jobs.create_pipeline("p", ["true"]).id, limit=large) == []


@pytest.mark.parametrize("timeout", [None, INFINITE, DIGITS, 0.5, 5])
def test_any_number_of_seconds_can_be_waited(jobs, timeout):
    """Infinity too, and more than a float can hold."""
    job = jobs.create_job("TASK")
    jobs.start_job(job.id)
    jobs.finish_job(job.id)

    assert jobs.wait(job.id, timeout).exit_code == 0
    assert list(jobs.follow(job.id, timeout=timeout)) == []


@pytest.mark.parametrize("timeout", [-1, -INFINITE, -DIGITS])
def test_a_time_out_that_is_over_is_a_time_out(jobs, timeout):
    """Less than nothing is waited for no time."""
    job = jobs.create_job("TASK")

    with pytest.raises(TimeoutError):
        jobs.wait(job.id, timeout)


@pytest.mark.parametrize(
    "path",
    [
        "",
        ":memory:",
        Path(":memory:"),
        b"/tmp/jobs.db",
        Bytes(),
        "/tmp/a\0b",
        "/tmp/\ud800",
        5,
        None,
    ],
    ids=repr,
)
def test_a_database_is_a_file(tmp_path, monkeypatch, path):
    """A name that other processes cannot open is refused, and nothing is made."""
    monkeypatch.chdir(tmp_path)

    error = refusal(lambda: JobManager(path))

    assert "database" in str(error)
    assert type(error) is ArgumentError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("slots", value) for value in (-1, 1.5, "2", True, NAN)],
        *[("busy_timeout", value) for value in (-1, NAN, INFINITE, "x", None, True, HUGE, DIGITS)],
        *[("python", value) for value in (5, "", "\0", b"python", "\ud800")],
        *[("launcher", value) for value in (5, "python")],
        *[("executors", value) for value in (5, [1], {"COMMAND": None}, {5: None}, {"X": "echo"})],
        *[("clock", value) for value in (5, datetime)],
        ("on_exit", "x"),
        ("on_exit", None),
    ],
)
def test_argument_error_names_the_argument(database, name, value):
    """It is an ArgumentError with the argument's name, and no file is made."""
    error = refusal(lambda: JobManager(database, **{name: value}))

    assert name in str(error)
    assert type(error) is ArgumentError
    assert not os.path.exists(database)


def test_python_is_for_the_own_launcher_alone(database):
    """An interpreter that a launcher would not use is refused, not ignored."""
    error = refusal(lambda: JobManager(database, python="python3", launcher=ProcessLauncher()))

    assert "python" in str(error)
    assert not os.path.exists(database)


def test_a_launcher_starts_all_supervisors(database):
    """A launcher gets one end of a socket pair, once for each supervisor."""
    given = []

    class Counts(ProcessLauncher):
        def start(self, descriptor):
            given.append(descriptor)
            return super().start(descriptor)

    with JobManager(database, slots=1, launcher=Counts()) as jobs:
        codes = [jobs.wait(job.id, 30).exit_code for job in jobs.submit_many([["true"]] * 3)]

    assert codes == [0, 0, 0]
    assert len(given) == 1


@pytest.mark.parametrize("name", ["a b.db", "ü.db", "\udcff.db", "nl\n.db", ":memory:x"])
def test_any_name_of_a_file_will_do(tmp_path, name):
    """Names that are only odd are names."""
    with JobManager(tmp_path / name, slots=0, busy_timeout=0) as jobs:
        assert jobs.list_jobs() == []

    with closing(sqlite3.connect(os.fsencode(tmp_path / name))) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_more_slots_than_sqlite_can_count_are_many(database):
    """However many slots, jobs run."""
    with JobManager(database, slots=HUGE) as jobs:
        assert jobs.wait(jobs.submit(["true"]).id, 30).exit_code == 0
