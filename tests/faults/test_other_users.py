"""Other users of the machine: nothing that they can create decides what this user runs."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
from contextlib import closing
from types import SimpleNamespace

import pytest

from jobcore import JobManager, StoreError, UnsupportedFileSystem
from jobcore.operations import doctor
from jobcore.storage import permissions
from jobcore.storage.database import Database
from tests.jobfiles import sql
from tests.processes import PATIENCE, in_child

STRANGER = 65534
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")

REMEDIES = [
    "mkdir -m 700 jobs && jobcore --db jobs/jobs.db",
    "JOBCORE_TRUST_DIRECTORY=",
    "JobManager(trust_directory=True)",
    "jobcore --trust-directory",
]


def become(user):
    """Have this process, a child, be another user."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


@pytest.fixture
def shared(tmp_path):
    """Return a directory like /tmp, in which every user can create files."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


def snapshot(folder):
    """Return all below a folder that a change would touch, times included."""
    found = {}
    for place, folders, names in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in (*folders, *names))):
            facts = os.lstat(path)
            content = None
            if stat.S_ISREG(facts.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            found[path] = facts.st_mode, facts.st_uid, facts.st_ino, facts.st_mtime_ns, content
    return found


# --- files that SQLite would believe ------------------------------------------------


def pages(path):
    """Return the pages of a closed database."""
    with open(path, "rb") as file:
        data = file.read()
    return [data[begin : begin + 4096] for begin in range(0, len(data), 4096)]


def journal(old, new):
    """Return a rollback journal by which SQLite makes `new` of `old`, the id of the store kept."""
    changed = [number for number in range(3, len(new)) if old[number : number + 1] != [new[number]]]
    data = bytes.fromhex("d9d505f920a163d7")
    data += struct.pack(">IIIII", len(changed), 0, len(new), 512, 4096)
    data = data.ljust(512, b"\0")
    for number in changed:
        page = new[number]
        data += struct.pack(">I", number + 1) + page
        data += struct.pack(">I", sum(page[at] for at in range(4096 - 200, 0, -200)))
    return data


@pytest.fixture
def planted(shared, tmp_path):
    """Return a database, and a journal that puts another user's job into it."""
    database, other = str(shared / "jobs.db"), str(tmp_path / "other.db")
    for path in (database, other):
        JobManager(path, slots=0, trust_directory=True).close()
    before = pages(other)
    with JobManager(other, slots=0) as jobs:
        jobs.submit(["touch", str(tmp_path / "ran")])
    sql(other, "PRAGMA wal_checkpoint(TRUNCATE)")
    return database, journal(before, pages(other))


def plant(path, data):
    """Create a file as another user would, for all to write."""
    with open(path, "xb") as file:
        file.write(data)
    os.chown(path, STRANGER, STRANGER)
    os.chmod(path, 0o666)


@only_root
def test_a_planted_journal_is_not_replayed(planted, shared, tmp_path):
    """A journal of another user would bring in a job; it is refused, also where he is trusted."""
    database, data = planted
    shutil.copy(database, tmp_path / "copy.db")
    (tmp_path / "copy.db-journal").write_bytes(data)
    assert sql(str(tmp_path / "copy.db"), "SELECT count(*) FROM job")[0][0] == 1  # it would work

    plant(database + "-journal", data)
    before = snapshot(shared)
    with pytest.raises(StoreError, match="any user can create files in"):
        JobManager(database, slots=1)
    with pytest.raises(
        StoreError, match=f"-journal belongs to another user.* work as user {STRANGER}"
    ):
        JobManager(database, slots=1, trust_directory=True)

    assert snapshot(shared) == before
    os.unlink(database + "-journal")
    with JobManager(database, slots=0, trust_directory=True) as jobs:
        assert jobs.list_jobs() == []


@only_root
@pytest.mark.parametrize("end", permissions.SIDE_FILES)
@pytest.mark.parametrize("what", ["a file", "a link", "a FIFO"])
def test_file_planted_beside_an_open_database_is_refused(planted, tmp_path, end, what):
    """Each connection that is made later looks at what is beside the file before SQLite does."""
    database, data = planted
    opened = Database(database, trust_directory=True)
    opened.close_connections()  # as before a fork
    if what == "a file":
        plant(database + end, data)
    elif what == "a link":
        (tmp_path / "elsewhere").write_bytes(data)
        os.symlink(tmp_path / "elsewhere", database + end)
    else:
        os.mkfifo(database + end)

    with pytest.raises(StoreError, match=rf"jobs\.db{end} (is|belongs to)"), opened.read():
        pass
    os.unlink(database + end)
    with opened.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM job").scalar() == 0
    opened.close()


def test_vanishing_side_file_does_not_prevent_opening(database, monkeypatch):
    """A database is opened though another process, which closes it, removes a file meanwhile."""
    Database(database).close()
    log = os.fspath(database) + "-wal"
    with open(log, "xb"):
        os.chmod(log, 0o640)
    found = os.lstat

    def removed_once_seen(path):
        facts = found(path)
        if path == log:
            os.unlink(log)
        return facts

    monkeypatch.setattr(os, "lstat", removed_once_seen)
    permissions.require_private_files(os.fspath(database))
    with open(log, "xb"):
        os.chmod(log, 0o640)
    permissions.make_private(os.fspath(database))

    assert not os.path.exists(log)


# --- directories --------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702, 0o703, 0o3777], ids=oct)
def test_a_directory_that_every_user_can_write_to_is_refused(tmp_path, mode):
    """With or without the sticky bit: nothing is created there, and the error says what to do."""
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(mode)

    with pytest.raises(StoreError, match="any user can create files") as caught:
        JobManager(directory / "jobs.db", slots=0)
    assert [words for words in REMEDIES if words not in str(caught.value)] == []
    assert os.listdir(directory) == []


@only_root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "refused"),
    [
        (STRANGER, 0, 0o755, f"user {STRANGER}, who owns it, can create files"),
        (STRANGER, 0, 0o500, f"user {STRANGER}, who owns it, can create files"),
        (0, STRANGER, 0o775, f"group {STRANGER} can create files"),
        (0, STRANGER, 0o2770, f"group {STRANGER} can create files"),
        (0, STRANGER, 0o755, None),
        (0, 0, 0o775, None),  # this user's private group
        (0, 0, 0o2775, None),
    ],
)
def test_a_directory_is_refused_for_its_owner_or_group(tmp_path, owner, group, mode, refused):
    """Another owner, or a group that can write and has other members, could create files."""
    directory = tmp_path / "place"
    directory.mkdir()
    os.chown(directory, owner, group)
    directory.chmod(mode)
    if refused is None:
        JobManager(directory / "jobs.db", slots=0).close()
    else:
        with pytest.raises(StoreError, match=refused):
            JobManager(directory / "jobs.db", slots=0)
        JobManager(directory / "jobs.db", slots=0, trust_directory=True).close()


@pytest.mark.parametrize(
    ("name", "primary", "members", "private"),
    [
        ("alice", True, [], True),
        ("alice", True, ["alice"], True),
        ("alice", True, ["alice", "bob"], False),
        ("staff", True, [], False),
        ("alice", False, [], False),
    ],
)
def test_a_group_is_private_by_name_and_members(
    tmp_path, monkeypatch, name, primary, members, private
):
    """It is the user's primary group, has the user's name, and names no other member."""
    directory = tmp_path / "place"
    directory.mkdir()
    directory.chmod(0o775)
    group = os.stat(directory).st_gid
    user = SimpleNamespace(pw_name="alice", pw_gid=group if primary else group + 1)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: user)
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_name=name, gr_mem=members))

    assert (permissions.other_writer(str(directory)) is None) is private


@only_root
def test_a_user_without_a_name_can_use_a_private_directory():
    """A container's user that no passwd knows is refused a group's directory, with the remedy."""
    user = 54321
    place = tempfile.mkdtemp(prefix="jobcore-test-")
    os.chown(place, user, user)

    def use():
        become(user)
        JobManager(f"{place}/jobs.db", slots=0).close()
        os.chmod(place, 0o770)
        with pytest.raises(StoreError, match=f"group {user} can create files") as caught:
            JobManager(f"{place}/jobs.db", slots=0)
        os.environ["JOBCORE_TRUST_DIRECTORY"] = place + "/"
        JobManager(f"{place}/jobs.db", slots=0).close()
        return str(caught.value)

    try:
        assert f"JOBCORE_TRUST_DIRECTORY={place}" in in_child(use)
    finally:
        shutil.rmtree(place)


_OWNER, _USER, _GROUP, _NAMED_GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32


@pytest.mark.parametrize(
    ("entries", "writer"),
    [
        ([(_USER, 7, STRANGER), (_GROUP, 5, 0), (_MASK, 7, 0)], f"user {STRANGER}"),
        ([(_USER, 5, STRANGER), (_GROUP, 5, 0), (_MASK, 7, 0)], None),
        ([(_USER, 7, STRANGER), (_GROUP, 7, 0), (_MASK, 5, 0)], None),
        ([(_USER, 7, os.geteuid()), (_GROUP, 5, 0), (_MASK, 7, 0)], None),
        ([(_GROUP, 5, 0), (_NAMED_GROUP, 7, STRANGER), (_MASK, 7, 0)], f"group {STRANGER}"),
        ([(_GROUP, 5, 0), (_NAMED_GROUP, 7, STRANGER), (_MASK, 4, 0)], None),
    ],
)
def test_an_access_control_list_is_read_with_its_mask(tmp_path, entries, writer):
    """The mode shows the mask of a list: what counts is what each entry allows below it."""
    directory = tmp_path / "listed"
    directory.mkdir()
    stored = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, allowed, number if tag in (_USER, _NAMED_GROUP) else 2**32 - 1)
        for tag, allowed, number in [(_OWNER, 7, 0), *entries, (_OTHER, 5, 0)]
    )
    try:
        os.setxattr(directory, "system.posix_acl_access", stored)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")

    assert permissions.other_writer(str(directory)) == writer


def jobcore(*words):
    """Run the command line in a process of its own: `work` blocks signals in its process."""
    return subprocess.run(
        [sys.executable, "-m", "jobcore", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_each_way_out_that_is_printed_works(shared, monkeypatch):
    """The variable, the argument, the option, and a private directory of one's own."""
    database = str(shared / "jobs.db")

    refused = jobcore("--db", database, "work", "--drain")
    assert (refused.returncode, "mkdir -m 700 jobs" in refused.stderr) == (1, True)
    trusted = jobcore("--db", database, "--trust-directory", "work", "--drain")
    assert trusted.returncode == 0
    removed = jobcore("--db", database, "--trust-directory", "cancel", "0" * 32)
    assert "no job" in removed.stderr.lower()
    JobManager(database, slots=0, trust_directory=True).close()
    monkeypatch.setenv("JOBCORE_TRUST_DIRECTORY", str(shared.parent))
    with pytest.raises(StoreError):
        JobManager(database, slots=0)
    monkeypatch.setenv("JOBCORE_TRUST_DIRECTORY", str(shared))
    JobManager(database, slots=0).close()
    monkeypatch.delenv("JOBCORE_TRUST_DIRECTORY")
    os.mkdir(shared / "jobs", 0o700)
    JobManager(shared / "jobs" / "jobs.db", slots=0).close()


def test_doctor_names_a_directory_that_others_can_write_to(shared):
    """It is wrong for `doctor`, unless it is trusted."""
    database = str(shared / "jobs.db")
    with JobManager(database, slots=0, trust_directory=True) as jobs:
        trusted = {one.check: one.verdict for one in jobs.check()}
    found = {one.check: one for one in doctor.examine(database)}

    assert trusted["other users"] == "ok"
    assert found["other users"].verdict == "wrong"
    assert "any user can create files" in found["other users"].detail


@pytest.mark.parametrize("end", permissions.SIDE_FILES)
def test_doctor_does_not_wait_for_a_fifo_beside_a_database(database, end):
    """It names it, and does not have SQLite open it."""
    Database(database).close()
    os.mkfifo(os.fspath(database) + end)
    found = doctor.examine(database)

    assert (found[-1].check, found[-1].verdict) == ("file", "wrong")
    assert f"jobs.db{end} is not a file" in found[-1].detail


# --- links --------------------------------------------------------------------------


@only_root
@pytest.mark.parametrize("of", ["the file", "a directory", "a chain"])
def test_a_link_of_another_user_is_not_followed(tmp_path, of):
    """He could point it elsewhere; the error names the path that it leads to."""
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "jobs.db"
    Database(real).close()
    link = tmp_path / "link"
    os.symlink("real" if of == "a directory" else real, link)
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    path = link / "jobs.db" if of == "a directory" else link
    if of == "a chain":
        path = tmp_path / "own"
        os.symlink("link", path)
    before = snapshot(tmp_path)

    with pytest.raises(StoreError, match=f"link of user {STRANGER}.*{tmp_path}/real"):
        Database(path)
    assert snapshot(tmp_path) == before
    os.chown(link, os.geteuid(), -1, follow_symlinks=False)
    Database(path).close()


@pytest.mark.parametrize(
    "path",
    ["jobs.db", "./x/../jobs.db", "x/link/jobs.db", "x/absolute/../jobs.db", "//{}//jobs.db"],
)
def test_a_path_is_resolved_as_the_system_does(tmp_path, monkeypatch, path):
    """Dots, links and slashes lead where realpath says."""
    (tmp_path / "x").mkdir()
    os.symlink("../x", tmp_path / "x" / "link")
    os.symlink(tmp_path, tmp_path / "x" / "absolute")
    monkeypatch.chdir(tmp_path)
    path = path.format(str(tmp_path)[1:])

    assert permissions.resolve(path) == os.path.realpath(path)


def test_cycle_of_links_is_an_error(tmp_path):
    """Links that lead to each other are an error, and no endless search."""
    os.symlink("b", tmp_path / "a")
    os.symlink("a", tmp_path / "b")

    with pytest.raises(StoreError, match="Too many levels of symbolic links"):
        Database(tmp_path / "a")


# --- what is refused stays as it is -------------------------------------------------


def foreign_database(path, *, log=False):
    """Make another program's database; with `log`, one that has a write-ahead log."""
    with closing(sqlite3.connect(path)) as connection:
        if log:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE bookmark (url)")


def database_in_its_log(path, *, shared_memory=True):
    """Make another program's database that was killed before its first checkpoint."""

    def make():
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE bookmark (url)")
        connection.commit()
        os._exit(0)

    pid = os.fork()
    if pid == 0:
        make()
    os.waitpid(pid, 0)
    if not shared_memory:
        os.unlink(f"{path}-shm")


def newer_database(path):
    """Make a database of a jobcore that is not there yet."""
    Database(path).close()
    sql(str(path), "PRAGMA user_version = 99")


def socket_file(path):
    """Make a socket."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def of_another_user(path):
    """Make an empty file of another user."""
    path.touch()
    os.chown(path, STRANGER, STRANGER)


FILES = {
    "another program's database": foreign_database,
    "another program's database with a log": lambda path: foreign_database(path, log=True),
    "another program's database in its log": database_in_its_log,
    "another program's log alone": lambda path: database_in_its_log(path, shared_memory=False),
    "a newer jobcore's": newer_database,
    "a file of one byte": lambda path: path.write_text("1"),
    "a web page": lambda path: path.write_text("<!doctype html>\n" * 500),
    "a list of users": lambda path: path.write_text("root:x:0:0:root:/root:/bin/sh\n"),
    "a database's first bytes": lambda path: path.write_bytes(b"SQLite format 3\0"),
    "a directory": os.mkdir,
    "a FIFO": os.mkfifo,
    "a socket": socket_file,
    "a device": lambda path: os.mknod(path, 0o644 | stat.S_IFCHR, os.makedev(1, 5)),
    "an empty file of another user": of_another_user,
}


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=only_root if what in ("a device", list(FILES)[-1]) else ())
        for what in FILES
    ],
)
def test_a_file_that_is_refused_stays_as_it_is(tmp_path, what):
    """Mode, times, content and neighbours: not even a read-only connection leaves a trace."""
    path = tmp_path / "jobs.db"
    FILES[what](path)
    shutil.rmtree(f"{path}.jobs", ignore_errors=True)
    if not path.is_dir():
        path.chmod(0o644)
    before = snapshot(tmp_path)

    for _ in range(2):
        with pytest.raises(StoreError):
            JobManager(path, slots=0)
    assert snapshot(tmp_path) == before


def test_no_database_is_created_beside_an_invalid_root(tmp_path):
    """Where a link has the name of the directory of job directories nothing is made."""
    os.symlink("/etc", tmp_path / "jobs.db.jobs")

    with pytest.raises(StoreError, match=r"jobs\.db\.jobs is a link"):
        JobManager(tmp_path / "jobs.db", slots=0)
    assert os.listdir(tmp_path) == ["jobs.db.jobs"]


@pytest.mark.parametrize("path", ["/proc/version", "/proc/self/comm", "/sys/kernel/new"])
def test_a_file_system_of_the_kernel_is_refused(path):
    """What looks like a file there must not be written to."""
    with pytest.raises(UnsupportedFileSystem, match="which stores no files"):
        Database(path)


def test_a_database_on_a_mount_of_another_user_can_be_trusted(tmp_path, monkeypatch):
    """As root in a container with a volume of user 1000: one variable, and it works."""
    monkeypatch.setenv("JOBCORE_TRUST_DIRECTORY", str(tmp_path))
    if os.geteuid() == 0:
        os.chown(tmp_path, 1000, 1000)
    with JobManager(tmp_path / "jobs.db", slots=0) as jobs:
        jobs.create_job("TASK")
    with JobManager(tmp_path / "jobs.db", slots=0) as jobs:
        assert len(jobs.list_jobs()) == 1
