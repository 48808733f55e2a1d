"""`Job.command` shows what a job runs, and no secret; no JSON, text or copy of a job has more."""

from __future__ import annotations

import json
import pickle
import sqlite3
from contextlib import closing

from jobcore import Command, JobManager
from tests.jobfiles import row_of
from tests.processes import PATIENCE

SECRET = "s3cr3t-value"
COMMAND = Command(
    ["curl", "--token", SECRET, "a b"],
    cwd=f"/srv/{SECRET}",
    env={"TOKEN": SECRET, "LEVEL": "debug-value"},
    stdin=f"stdin {SECRET}".encode() * 1000,
    timeout=5,
    redact=[SECRET],
)


def test_command_is_shown_wherever_a_job_is_returned(database):
    """The same from the call that creates a job, from a listing and from a search."""
    with JobManager(database, slots=0) as jobs:
        made = jobs.submit(COMMAND)
        found = [
            made,
            jobs.get_job(made.id),
            jobs.list_jobs()[0],
            jobs.find_jobs(str(made.id))[0],
            jobs.retry_job(jobs.cancel_job(made.id).id),
            *jobs.prune(0, dry_run=True),
        ]

    for job in found:
        view = job.command
        assert view.argv == ("curl", "--token", "***", "a b")
        assert (view.cwd, view.env_names, view.timeout) == ("/srv/***", ("TOKEN", "LEVEL"), 5)
        assert str(view) == "curl --token '***' 'a b'"
    assert found[0] == found[1] == found[2]


def test_no_form_of_a_job_has_a_secret_of_its_command(database):
    """Neither JSON nor repr has the command; a copy has only what can be shown."""
    with JobManager(database, slots=0) as jobs:
        jobs.submit(COMMAND)
        (job,) = jobs.list_jobs()

    assert "command" not in job.model_dump()
    for text in (job.model_dump_json(), repr(job), str(job)):
        assert "curl" not in text
    copied = pickle.dumps(job)
    for secret in (SECRET, "debug-value", "stdin"):
        assert secret.encode() not in copied
    assert pickle.loads(copied).command == job.command


def test_words_of_any_bytes_and_shells_are_shown(database):
    """Bytes that are not UTF-8 are replaced, and masked before; a shell's string stays as it is."""
    with JobManager(database, slots=0) as jobs:
        odd = jobs.submit(Command([b"echo", b"\xff", b"key\xfe"], redact=[b"key\xfe"]))
        script = jobs.submit(Command("echo 'a' | wc", shell=True))
        task = jobs.create_job("TASK")

    assert odd.command.argv == ("echo", "\N{REPLACEMENT CHARACTER}", "***")
    assert (str(script.command), script.command.shell) == ("echo 'a' | wc", True)
    assert task.command is None


def test_input_is_kept_for_a_retry(database):
    """Until the job is deleted, though no listing has it; of a file, only the path is kept."""
    given = Command(["sh", "-c", "cat; exit 1"], stdin=b"input")
    with JobManager(database, slots=1) as jobs:
        first = jobs.wait(jobs.submit(given).id, PATIENCE)
        again = jobs.wait(jobs.retry_job(first.id).id, PATIENCE)

        assert [line.text for line in jobs.logs(again.id)] == ["input"]
        assert "input" not in repr(first.command)
        path = jobs.submit(Command(["cat"], stdin=__file__), reserved=True)
    assert json.loads(row_of(database, path.id)["command"])["stdin"] == __file__


def test_damaged_command_hides_no_job(database):
    """The job is listed and can be read, without its command."""
    with JobManager(database, slots=0) as jobs:
        made = [jobs.submit(["true"]) for _ in range(3)]
        with closing(sqlite3.connect(database)) as connection, connection:
            for job, text in zip(made, ("{", "[]", '{"argv": 3, "redact": []}'), strict=True):
                connection.execute(
                    "UPDATE job SET command = ? WHERE number = ?", (text, job.number)
                )
        listed = jobs.list_jobs()
        read = [jobs.get_job(job.id) for job in made]
        assert jobs.list_damaged_rows() == []

    assert [job.command for job in (*listed, *read)] == [None] * 6
