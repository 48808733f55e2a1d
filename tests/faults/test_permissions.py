"""Permissions: jobcore's files belong to its user alone, and files of others are not used."""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from jobcore import (
    DatabaseGone,
    JobManager,
    JobNotFound,
    PipelineNotFound,
    Reason,
    Status,
    StoreError,
    StoreMismatch,
    WorkspaceNotFound,
    wire,
)
from jobcore.cli.app import app
from jobcore.engine.job_directories import Directories
from jobcore.testing.parts import parts
from tests.integration.http_adapter import create_app
from tests.jobfiles import row_of, sql
from tests.processes import PATIENCE, ROOT, in_child, until

pytestmark = pytest.mark.usefixtures("warm_supervisors")

for module in (
    "run_and_work",
    "maintenance",
    "job_commands",
):  # they add themselves to the application
    importlib.import_module(f"jobcore.cli.{module}")

STRANGER = 65534
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")

#: Ignores SIGTERM, and ends with 6 when its first argument is there.
STAYS = [
    *("sh", "-c"),
    'trap "echo stopping" TERM; echo ready; until [ -e "$1" ]; do sleep 0.01; done; exit 6',
    "",
]


def everything(folder, open_here=""):
    """
    Return all below a folder, with what a change would touch.

    Args:
        open_here: A database that this process has open: to close a descriptor on it
            would drop SQLite's locks, so it is left out.
    """
    found = {}
    for place, folders, names in os.walk(folder):
        for path in (os.path.join(place, name) for name in (*folders, *names)):
            facts = os.lstat(path)
            what = None
            if stat.S_ISLNK(facts.st_mode):
                what = os.readlink(path)
            elif stat.S_ISREG(facts.st_mode):
                if open_here and path in {open_here, open_here + "-wal", open_here + "-shm"}:
                    continue
                with open(path, "rb") as file:
                    what = file.read()
            found[path] = (facts.st_mode, facts.st_uid, facts.st_ino, what)
    return found


def modes(folder):
    """Return the modes of all below a folder, by their path there."""
    return {
        os.path.relpath(os.path.join(place, name), folder): oct(
            os.lstat(os.path.join(place, name)).st_mode & 0o7777
        )
        for place, folders, names in os.walk(folder)
        for name in (*folders, *names)
    }


@contextmanager
def umask(mask):
    """Have this umask for the block."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# --- what jobcore makes -----------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777], ids=oct)
def test_files_of_a_running_job_are_private(tmp_path, mask):
    """Every file of database and job directory is 0600, every directory 0700, under any umask."""
    place = tmp_path / "place"
    place.mkdir()
    database = str(place / "jobs.db")
    go = str(tmp_path / "go")
    with umask(mask):
        with JobManager(database, slots=1) as jobs:
            job = jobs.submit([*STAYS, go])
            log = jobs.follow(job.id, timeout=PATIENCE)
            assert next(log).text == "ready"
            jobs.stop_job(job.id, grace=10 * PATIENCE)
            assert any(line.text == "stopping" for line in log)
            log.close()
            parts(jobs).database.checkpoint()
            found = modes(place)
        open(go, "x").close()
        until(lambda: os.path.exists(f"{database}.jobs/{job.id.hex}/exit"), "the verdict")
        found |= modes(place)
        with JobManager(database, slots=0) as jobs:
            ended = jobs.wait(job.id, PATIENCE)
    root, own = "jobs.db.jobs", f"jobs.db.jobs/{job.id.hex}"
    directories = {root, own}
    files = {
        *("jobs.db", "jobs.db-wal", "jobs.db-shm", f"{root}/store", f"{root}/checkpoint"),
        *(f"{own}/{name}" for name in ("lock", "ctl", "run", "stop", "spool.0", "exit")),
    }

    assert (ended.reason, ended.exit_code) == (Reason.STOPPED, 6)
    assert found == {**dict.fromkeys(directories, "0o700"), **dict.fromkeys(files, "0o600")}


@only_root
def test_umask_0777_does_not_lock_the_owner_out():
    """A user other than root can use and reopen files that were made under umask 0777."""
    place = tempfile.mkdtemp(prefix="jobcore-test-")
    os.chown(place, STRANGER, STRANGER)
    database = f"{place}/jobs.db"
    name = uuid4().hex

    def use():
        os.setgroups([])
        os.setgid(STRANGER)
        os.setuid(STRANGER)
        os.umask(0o777)
        for _ in range(2):
            with JobManager(database, slots=0) as jobs:
                task = jobs.start_job(jobs.create_job("TASK").id)
                jobs.append_log(task.id, "line")
                jobs.finish_job(task.id)
                parts(jobs).database.checkpoint()
            directories = Directories(database)
            prepared = directories.prepare(name, "0" * 32)
            prepared.close()
            directories.close()
        return len(os.listdir(f"{database}.jobs/{name}"))

    try:
        assert in_child(use) == 2
    finally:
        shutil.rmtree(place)


# --- directories that are not ours ------------------------------------------------


def make_strange(path, what, elsewhere):
    """Make a directory what no jobcore has left there."""
    if what == "a link":
        shutil.move(path, elsewhere)
        os.symlink(elsewhere, path)
    elif what == "a link to nothing":
        shutil.rmtree(path)
        os.symlink(elsewhere, path)
    elif what == "another user's":
        os.chown(path, STRANGER, -1)
    elif what == "a file":
        shutil.rmtree(path)
        open(path, "x").close()
    else:
        os.chmod(path, int(what, 8))


FOREIGN = pytest.param("another user's", marks=only_root)


@pytest.mark.parametrize(
    "what", ["a link", "a link to nothing", "a file", FOREIGN, "0o720", "0o702", "0o750", "0o701"]
)
def test_invalid_root_is_refused_before_any_write_or_start(tmp_path, what):
    """No job of the queue starts, and not a byte, mode or owner is changed, here or elsewhere."""
    database = str(tmp_path / "jobs.db")
    with JobManager(database, slots=0) as jobs:
        jobs.submit(["touch", str(tmp_path / "ran")])
    make_strange(database + ".jobs", what, str(tmp_path / "elsewhere"))
    before = everything(tmp_path)

    for _ in range(2):
        with pytest.raises(StoreMismatch, match=r"jobs\.db\.jobs"):
            JobManager(database, slots=1)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("what", ["a link", "a link to nothing", "a directory", "a FIFO", "no id"])
def test_invalid_store_id_file_is_refused(tmp_path, what):
    """A file with the name of the store's id but other content is refused and stays."""
    database = str(tmp_path / "jobs.db")
    with JobManager(database, slots=0) as jobs:
        jobs.submit(["touch", str(tmp_path / "ran")])
    store = f"{database}.jobs/store"
    os.rename(store, tmp_path / "elsewhere")
    {
        "a link": lambda: os.symlink(tmp_path / "elsewhere", store),
        "a link to nothing": lambda: os.symlink(tmp_path / "nothing", store),
        "a directory": lambda: os.mkdir(store),
        "a FIFO": lambda: os.mkfifo(store),
        "no id": lambda: Path(store).write_bytes(b"\xff" * 32),
    }[what]()
    before = everything(tmp_path)

    with pytest.raises(StoreError):
        JobManager(database, slots=1)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("what", ["a link", "a file", FOREIGN, "0o701"])
@pytest.mark.usefixtures("quick_failures")
def test_job_with_an_invalid_directory_does_not_start(tmp_path, what, caplog):
    """It stays QUEUED, others run, nothing is written there; once it is gone the job runs."""
    database = str(tmp_path / "jobs.db")
    with JobManager(database, slots=0) as jobs:
        held = jobs.submit(["touch", str(tmp_path / "ran")])
        other = jobs.submit(["true"])
    path = f"{database}.jobs/{held.id.hex}"
    os.mkdir(path, 0o700)
    make_strange(path, what, str(tmp_path / "elsewhere"))
    before = everything(tmp_path / "elsewhere"), os.lstat(path)
    with caplog.at_level("WARNING", logger="jobcore"), JobManager(database, slots=2) as jobs:
        assert jobs.wait(other.id, PATIENCE).status is Status.COMPLETE
        until(lambda: "start postponed" in caplog.text, "a try in vain")
        status = jobs.get_job(held.id).status
        ran = os.path.exists(tmp_path / "ran")
        after = everything(tmp_path / "elsewhere"), os.lstat(path)
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)
        ended = jobs.wait(held.id, PATIENCE)

    assert (status, ran, after) == (Status.QUEUED, False, before)
    assert ended.status is Status.COMPLETE


@pytest.mark.parametrize("what", ["a link", "0o777", FOREIGN])
def test_running_job_with_an_invalid_directory_is_not_judged(jobs, scripted, tmp_path, what):
    """A RUNNING job with another's directory is not settled, and stopping it raises an error."""
    one = scripted()
    one.write(b"line\n")
    one.exit()
    one.die()
    make_strange(one.path, what, str(tmp_path / "elsewhere"))
    before = everything(tmp_path / "elsewhere"), everything(one.path)

    assert jobs.get_job(one.id).status is Status.RUNNING
    assert jobs.recover() == []
    with pytest.raises(StoreMismatch):
        jobs.stop_job(one.id)
    assert (everything(tmp_path / "elsewhere"), everything(one.path)) == before

    if what == "a link":
        os.unlink(one.path)
        shutil.move(tmp_path / "elsewhere", one.path)
    else:
        os.chown(one.path, os.geteuid(), -1)
        os.chmod(one.path, 0o700)

    assert jobs.get_job(one.id).status is Status.COMPLETE


def test_a_root_that_is_swapped_for_a_link_is_not_followed(tmp_path):
    """A manager that is open does not go where the new name leads, nor do its jobs suffer."""
    database = str(tmp_path / "jobs.db")
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit([*STAYS, str(tmp_path / "go")])
        assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        os.rename(database + ".jobs", tmp_path / "elsewhere")
        os.symlink(tmp_path / "elsewhere", database + ".jobs")
        with pytest.raises(DatabaseGone):
            jobs.stop_job(job.id, grace=0)
        os.unlink(database + ".jobs")
        os.rename(tmp_path / "elsewhere", database + ".jobs")
        ended = jobs.wait(job.id, PATIENCE)

    assert (
        ended.status is Status.STOPPED
    )  # the request was stored, and carried out when it could be


# --- a database file that others can read or write ----------------------------------


@pytest.fixture
def closed(database):
    """Return a database with one task, that nobody has open."""
    with JobManager(database, slots=0) as jobs:
        jobs.create_job("TASK", name="there")
    return database


def test_a_backup_can_be_used_and_is_made_private(closed, tmp_path):
    """A copy by VACUUM INTO, which is 0644 under a usual umask, opens, and is 0600 from then on."""
    backup = str(tmp_path / "backup.db")
    with umask(0o022):
        sql(closed, f"VACUUM INTO '{backup}'")
    mode = os.stat(backup).st_mode & 0o777
    with JobManager(backup, slots=0) as jobs:
        jobs.create_job("TASK")
        names = [job.name for job in jobs.list_jobs()]
        found = modes(tmp_path)

    assert mode == 0o644
    assert names == [None, "there"]
    assert {found[f"backup.db{end}"] for end in ("", "-wal", "-shm")} == {"0o600"}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o755], ids=oct)
def test_file_readable_by_others_is_made_private(closed, mode, caplog):
    """Environments and secrets stand in it; the host's log says that it was so."""
    os.chmod(closed, mode)
    with caplog.at_level("WARNING", logger="jobcore"), JobManager(closed, slots=0) as jobs:
        assert len(jobs.list_jobs()) == 1

    assert os.stat(closed).st_mode & 0o777 == mode & 0o700
    assert "file readable by others" in caplog.text


@pytest.mark.parametrize("end", ["", "-wal"])
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777], ids=oct)
def test_file_writable_by_others_is_refused(closed, tmp_path, mode, end):
    """Who can write to the file can run commands, so it is refused with the remedy."""
    open(closed + end, "ab").close()
    os.chmod(closed + end, mode)
    before = everything(tmp_path)

    with pytest.raises(StoreError, match=r"others can write to .*chmod 600 it"):
        JobManager(closed, slots=1)
    assert everything(tmp_path) == before


@only_root
def test_a_database_of_another_user_is_refused(closed, tmp_path):
    """He could write to it at any time."""
    os.chown(closed, STRANGER, -1)
    before = everything(tmp_path)

    with pytest.raises(StoreError, match=f"another user.* work as user {STRANGER}, or make"):
        JobManager(closed, slots=1)
    assert everything(tmp_path) == before


def test_root_with_another_mode_is_refused_with_the_remedy(closed):
    """After a backup is restored with another mode, the error says how to correct it."""
    os.chmod(closed + ".jobs", 0o755)

    with pytest.raises(StoreMismatch, match=r"\.jobs: .* mode 755: it has to be .* mode 700"):
        JobManager(closed, slots=1)


def test_a_link_to_a_database_is_the_database(closed, tmp_path):
    """A link is followed once, at the beginning: the directories are beside the file itself."""
    link = str(tmp_path / "link.db")
    os.symlink(closed, link)
    with JobManager(link, slots=1) as jobs:
        job = jobs.wait(jobs.submit(["true"]).id, PATIENCE)
        os.unlink(link)
        with JobManager(closed, slots=0) as others:
            seen = [one.id for one in others.list_jobs()]
        jobs.create_job("TASK")

    assert job.id in seen
    assert sorted(os.listdir(tmp_path)) == ["jobs.db", "jobs.db.jobs"]


# --- ids that are paths, and texts that are SQL or shell ----------------------------

IDS = [
    "..", "../", "../jobs.db", "../../etc/passwd", "/etc/passwd", "a/b", "store", "checkpoint",
    ".gone-x", "%2e%2e%2f", "..%00", "\0", "x\0y", "é", "\u0661" * 32, "\u202e", "\udcff", "*", "~",
    "$HOME", "`id`", "0" * 31, "0" * 33, "g" * 32, "0x" + "0" * 30, "-" * 32, "{}", "urn:uuid:",
    "x" * 1_000_000, "../" * 100_000, " ", "\n", "None",
]  # fmt: skip


@pytest.fixture
def place(jobs, tmp_path):
    """Return a folder whose job directories and neighbours must not change."""
    task = jobs.start_job(jobs.create_job("TASK").id)
    os.mkdir(tmp_path / "neighbour")
    (tmp_path / "neighbour" / "exit").write_text("version=1\n")

    def state():
        found = everything(tmp_path, str(tmp_path / "jobs.db"))
        return found, jobs.list_jobs(), jobs.history(task.id)

    before = state()
    yield task
    assert state() == before


@pytest.mark.usefixtures("place")
def test_an_id_is_never_a_path(jobs):
    """In every verb it is the id of nothing; a short message says so, and nothing is touched."""
    verbs = {
        JobNotFound: (
            jobs.get_job, jobs.start_job, jobs.finish_job, jobs.stop_job, jobs.cancel_job,
            jobs.delete_job, jobs.retry_job, jobs.history, jobs.wait, jobs.logs, jobs.follow,
            jobs.log_text, jobs.log_ndjson, jobs.result, lambda one: jobs.tail(one, 1),
            lambda one: jobs.append_log(one, "x"), lambda one: jobs.report_progress(one, 1),
            lambda one: wire.log_response(jobs, one),
        ),
        WorkspaceNotFound: (
            jobs.get_workspace, jobs.update_workspace, jobs.delete_workspace,
            lambda one: jobs.submit(["true"], workspace_id=one),
            lambda one: jobs.create_pipeline("p", ["true"], workspace_id=one),
            lambda one: jobs.list_jobs(workspace_id=one),
            lambda one: jobs.count_jobs(workspace_id=one),
            lambda one: jobs.list_pipelines(workspace_id=one),
            lambda one: jobs.prune(0, workspace_id=one),
            lambda one: jobs.events(workspace_id=one),
            lambda one: jobs.subscribe(print, workspace_id=one),
        ),
        PipelineNotFound: (
            jobs.get_pipeline, jobs.update_pipeline, jobs.delete_pipeline, jobs.skips,
            lambda one: jobs.create_job(pipeline_id=one),
            lambda one: jobs.list_jobs(pipeline_id=one),
            lambda one: jobs.prune(0, pipeline_id=one),
            lambda one: jobs.events(pipeline_id=one),
        ),
    }  # fmt: skip
    for some_id, error in itertools.product(IDS, verbs):
        for verb in verbs[error]:
            with pytest.raises(error) as caught:
                verb(some_id)
            assert len(str(caught.value)) < 500


@pytest.mark.usefixtures("place")
def test_an_id_in_an_address_is_never_a_path(jobs):
    """Over HTTP each such id gets 404 or, where no address can hold it, 308 or 405."""
    client = create_app(jobs).test_client()
    requests = (
        ("GET", "/api/jobs/{}"), ("GET", "/api/jobs/{}/logs"), ("PUT", "/api/jobs/{}/stopped"),
        ("DELETE", "/api/jobs/{}"), ("GET", "/api/pipelines/{}"), ("GET", "/api/pipelines/{}/jobs"),
        ("POST", "/api/pipelines/{}/jobs"), ("GET", "/api/workspaces/{}/jobs"),
    )  # fmt: skip
    for some_id, (method, path) in itertools.product(IDS, requests):
        quoted = quote(some_id[:5000], safe="", errors="surrogateescape")
        got = client.open(path.format(quoted), method=method)
        assert got.status_code in (404, 308, 405), (method, path, some_id[:20])


@pytest.mark.usefixtures("place")
def test_an_id_on_the_command_line_is_never_a_path(database):
    """Each command that takes an id says in one line that no job has it, and exits with 1."""
    verbs = ("show", "logs", "history", "stop", "cancel", "wait", "delete")
    possible = [one for one in IDS if "\0" not in one and "\udcff" not in one]
    for number, some_id in enumerate(possible):
        verb = verbs[number % len(verbs)]
        done = CliRunner().invoke(app, ["--db", database, verb, "--", some_id])
        assert done.exit_code == 1, done.output
        assert "no job has the number, name or ID" in done.output
        assert len(done.output) < 500


INJECTIONS = [
    "' OR 1=1 --", "'; DROP TABLE job; --", '"; DELETE FROM job; --', "1; DROP TABLE job",
    "1 UNION SELECT * FROM sqlite_master", "') OR ('1'='1", "job.status", "rowid DESC; --", "%",
    "_", "\\", "'", '"', "`", "[job]", ":id", "?1", "$x", "@y", "\0", "\0'; DROP TABLE job; --",
    "x'; PRAGMA writable_schema=1; --", "'||(SELECT id FROM store)||'", "%s", "{0}", "NULL",
    "ORDER BY 1", "/* */", "CASE WHEN 1 THEN 1 END", "\u2018 OR 1=1", "%27%20OR%201=1",
]  # fmt: skip


def misuses(jobs, task, text):
    """Return calls that give a text where there is to be a number, a status or an event."""
    return (
        lambda: jobs.list_jobs(status=text),
        lambda: jobs.list_jobs(limit=text),
        lambda: jobs.list_jobs(before=text),
        lambda: jobs.count_jobs(status=[text]),
        lambda: jobs.prune(text),
        lambda: jobs.prune(0, status=text),
        lambda: jobs.prune(0, keep=text),
        lambda: jobs.events(text),
        lambda: jobs.events(status=text),
        lambda: jobs.events(limit=text),
        lambda: jobs.logs(task.id, text),
        lambda: jobs.logs(task.id, 0, text),
        lambda: jobs.tail(task.id, text),
        lambda: jobs.skips(uuid4(), limit=text),
    )


def schema_of(database):
    return [tuple(row) for row in sql(database, "SELECT type, name, sql FROM sqlite_master")]


def test_no_text_is_ever_sql(jobs, database, place):
    """As filter it is a value; as page, age or status it is refused; the schema stays."""
    client = create_app(jobs).test_client()
    schema = schema_of(database)
    for text in INJECTIONS:
        assert jobs.list_jobs(type=text) == jobs.list_jobs(type=[text]) == []
        assert sum(jobs.count_jobs(type=text).values()) == 0
        assert list(jobs.events(type=text)) == []
        for misuse in misuses(jobs, place, text):
            with pytest.raises((ValueError, LookupError)):
                misuse()
        for query in ("page", "size", "limit", "before", "sort", "status"):
            got = client.get(
                f"/api/workspaces/{place.workspace_id}/jobs", query_string={query: text}
            )
            assert got.status_code in (200, 400)
    assert schema_of(database) == schema


def test_no_option_is_ever_sql(database, place):
    """On the command line types are values, and all else is refused as a wrong use."""
    schema = schema_of(database)
    possible = [text for text in INJECTIONS if "\0" not in text]
    options = [("list", one) for one in ("--status", "--limit", "--before")]
    for number, text in enumerate(possible):
        verb, option = [*options, ("prune", "--older-than")][number % 4]
        done = CliRunner().invoke(app, ["--db", database, verb, f"{option}={text}"])
        assert done.exit_code == 2, done.output
    listed = subprocess.run(
        [sys.executable, "-m", "jobcore", "list", *(f"--type={text}" for text in possible)],
        env={**os.environ, "JOBCORE_DB": database, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    listed_there = sql(database, "SELECT count(*) FROM job")[0][0]

    assert listed.stdout + listed.stderr == b""
    assert (listed_there, schema_of(database)) == (1, schema)
    assert place.status is Status.RUNNING


def test_stored_text_comes_back_unchanged(jobs, database):
    """Names, types, data and log lines hold any text, and are nothing but text."""
    for text in INJECTIONS:
        job = jobs.start_job(jobs.create_job(text, name=text, data={"x": text}).id)
        jobs.append_log(job.id, text + "\n")
        pipeline = jobs.create_pipeline(text, ["true"], properties={"x": text})

        found = jobs.get_job(job.id)

        assert (found.type, found.name, found.data) == (text, text, {"x": text})
        assert [line.text for line in jobs.logs(job.id)] == [text]
        assert jobs.get_pipeline(pipeline.id).name == text
        assert [one.id for one in jobs.list_jobs(type=text)] == [job.id]

    assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"


WORDS = [
    "$HOME", "$(touch ran)", "`touch ran`", "; touch ran", "| touch ran", "&& touch ran", "> ran",
    "<ran", "*", "?", "[a-z]", "~", "~root", "{a,b}", "!!", "#", "'", '"', "\\", "\\n", " ", "",
    "a b", "\t", "\n", "--", "-x", "%s", "é", "\u202e", "\x1b[2J", "$'\\x41'", "${IFS}", "$((1+1))",
]  # fmt: skip


def test_words_of_a_command_are_passed_as_they_are(running_jobs, tmp_path):
    """No shell reads them: a command gets every word byte for byte, whatever it contains."""
    tell = "import sys; sys.stdout.write('\\0'.join(sys.argv[1:]))"
    job = running_jobs.submit([sys.executable, "-I", "-S", "-c", tell, *WORDS], cwd=str(tmp_path))
    ended = running_jobs.wait(job.id, PATIENCE)
    said = b"".join(line.raw for line in running_jobs.logs(job.id)).decode()

    assert ended.status is Status.COMPLETE, said
    assert said.split("\0") == WORDS
    assert not os.path.exists(tmp_path / "ran")


def test_shell_command_is_a_single_word(running_jobs, tmp_path):
    """Only with `shell=True` a shell reads the command, and then it is a single word for it."""
    plain = running_jobs.submit(["echo $(touch ran)"], cwd=str(tmp_path))
    shell = running_jobs.submit("echo 'a  b'", shell=True)

    assert running_jobs.wait(plain.id, PATIENCE).exit_code == 127
    assert running_jobs.wait(shell.id, PATIENCE).exit_code == 0
    assert [line.text for line in running_jobs.logs(shell.id)] == ["a  b"]
    assert not os.path.exists(tmp_path / "ran")
    assert row_of(parts(running_jobs).database.path, plain.id)["errno"] == 2
