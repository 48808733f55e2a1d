"""Old kernels, strict filters, a poor /proc: jobs run, end and are stopped with what is there."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from jobcore import JobManager, Reason, SpawnError, Status, StoreError
from jobcore.engine import launcher
from jobcore.operations import doctor
from jobcore.storage import schema
from jobcore.storage.database import Database
from jobcore.supervisor import job_directory, pids, progress, system_calls
from jobcore.testing.parts import parts
from tests.jobfiles import sql
from tests.kernels import forbid
from tests.mounts import in_own_mounts, mount_proc, mount_tmpfs
from tests.processes import PATIENCE, ROOT, carrying, children, in_child, state, until

_SUBREAPER = 36  # of linux/prctl.h: orphans come to us, as to the first process of a container

STAYS = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]

#: What a build of Python with an old C library lacks.
WITHOUT = """
import os, _signal
for module, name in (
    (os, "pidfd_open"), (os, "memfd_create"), (os, "P_PIDFD"), (_signal, "pidfd_send_signal"),
):
    if hasattr(module, name):
        delattr(module, name)
"""

#: Prints which descriptors are open.
FIND_OPEN = """
import os
for descriptor in range(1000):
    try:
        os.fstat(descriptor)
    except OSError:
        continue
    print(descriptor)
"""


def use(database):
    """Be a host: have jobs end by themselves, by a stop and by the death of their supervisor."""
    system_calls.known_pidfds.clear()  # what the process knew that this one was forked from
    told = []
    with JobManager(database, slots=2) as jobs:
        for job in (jobs.submit(["sh", "-c", "cat; exit 3"], stdin=b"hello\n") for _ in range(2)):
            ended = jobs.wait(job.id, PATIENCE)
            told.append((ended.exit_code, [line.text for line in jobs.logs(job.id)]))
        stays = [jobs.submit(STAYS) for _ in range(2)]
        for job in stays:
            assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        jobs.stop_job(stays[0].id, grace=0)
        with open(f"{database}.jobs/{stays[1].id.hex}/{job_directory.RUN}", "rb") as file:
            os.kill(job_directory.decode_record(file.read())["supervisor"], signal.SIGKILL)
        told += [jobs.wait(job.id, PATIENCE).reason for job in stays]
    return told


#: What `use` returns, wherever it runs.
AS_EVER = [(3, ["hello"]), (3, ["hello"]), Reason.STOPPED, Reason.LOST]


def use_and_reap(database):
    """Do the same, and see that nothing is left behind."""
    told = use(database)
    until(lambda: not children(), "the end and the reaping of all children")
    return told


@pytest.mark.parametrize(
    "error", [errno.ENOSYS, errno.EPERM, errno.EACCES], ids=errno.errorcode.get
)
@pytest.mark.parametrize(
    "calls",
    [
        ["pidfd_open"],
        ["pidfd_send_signal"],
        ["memfd_create"],
        ["close_range"],
        ["pidfd_open", "pidfd_send_signal", "memfd_create", "close_range"],
    ],
    ids="+".join,
)
def test_jobs_run_without_a_system_call(database, calls, error):
    """If a kernel lacks it or a filter forbids it, jobs end with the same facts."""

    def host():
        forbid(*calls, error=error)
        return use_and_reap(database)

    assert in_child(host) == AS_EVER


def test_jobs_run_where_no_process_is_waited_for_by_pidfd(database):
    """Linux 5.3 has pidfds, but `waitid` does not know them."""

    def host():
        system_calls.known_pidfds.clear()  # what an earlier test found out
        forbid("waitid by pidfd", error=errno.EINVAL)
        return use_and_reap(database)

    assert in_child(host) == AS_EVER


def test_jobs_run_on_a_python_with_an_old_c_library(database):
    """Host and supervisors have neither pidfds nor files in memory by name."""

    def host():
        system_calls.known_pidfds.clear()  # what an earlier test found out
        exec(WITHOUT)
        del signal.pidfd_send_signal
        launcher.STUB = WITHOUT + launcher.STUB
        return use_and_reap(database)

    assert in_child(host) == AS_EVER


@pytest.mark.parametrize("what", ["subset=pid", "hidepid=2", "none"])
def test_jobs_run_with_an_incomplete_proc(database, what):
    """`ProcSubset=pid` hides the boot id, a chroot has no /proc at all: jobs run all the same."""

    def host():
        if what == "none":
            mount_tmpfs("/proc", "64k")
            return use(database)
        mount_proc(what)
        return use_and_reap(database)

    assert in_own_mounts(host) == AS_EVER


def test_doctor_names_what_is_missing(database):
    """It is a note: jobs run all the same."""
    JobManager(database, slots=0).close()

    def look():
        system_calls.known_pidfds.clear()
        forbid("pidfd_open", "memfd_create")
        mount_tmpfs("/proc", "64k")
        return next(one for one in doctor.examine(database) if one.check == "system")

    found = in_own_mounts(look)
    assert found.verdict == "note"
    assert found.detail.startswith("without pidfds, memfd_create, /proc: jobcore works with less")


def test_a_host_that_dies_is_missed_without_pidfds(database):
    """Its idle supervisor ends, though a forked child of the host holds the socket."""

    gate, held = os.pipe()

    def host():
        os.close(held)
        forbid("pidfd_open")
        jobs = JobManager(database, slots=1)
        assert jobs.wait(jobs.submit(["true"]).id, PATIENCE).status is Status.COMPLETE
        (supervisor,) = parts(jobs).pool.supervisors
        kept = os.dup(supervisor.fileno())  # which no fork hook knows
        if os.fork() == 0:
            system_calls.close_all_but((gate, kept))
            os.read(gate, 1)
            os._exit(0)
        return supervisor.pid

    try:
        pid = in_child(host)
        until(lambda: state(pid) == "X", "the end of the supervisor")
    finally:
        os.close(held)
        os.close(gate)


def test_orphans_of_a_killed_supervisor_are_killed_without_pidfds(database):
    """A descendant with a session of its own is found by its cookie, and signalled by its pid."""
    leaves = "setsid sh -c 'trap : TERM; echo ready; while :; do sleep 0.1; done' & wait"

    def host():
        forbid("pidfd_open")
        with JobManager(database, slots=1) as jobs:
            job = jobs.submit(["sh", "-c", leaves])
            assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
            with open(f"{database}.jobs/{job.id.hex}/{job_directory.RUN}", "rb") as file:
                os.kill(job_directory.decode_record(file.read())["supervisor"], signal.SIGKILL)
            return jobs.wait(job.id, PATIENCE).reason

    assert in_child(host) is Reason.LOST
    ((cookie,),) = sql(database, "SELECT cookie FROM job")
    assert carrying(cookie) == []


def test_log_of_a_lost_job_says_that_processes_are_invisible_without_proc(database):
    """What the command has started may run on there, and the log must not hide that."""

    def host():
        mount_tmpfs("/proc", "64k")
        with JobManager(database, slots=1) as jobs:
            job = jobs.submit(STAYS)
            assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
            with open(f"{database}.jobs/{job.id.hex}/{job_directory.RUN}", "rb") as file:
                os.kill(job_directory.decode_record(file.read())["supervisor"], signal.SIGKILL)
            ended = jobs.wait(job.id, PATIENCE)
            return ended.reason, [line.text for line in jobs.logs(job.id)]

    reason, texts = in_own_mounts(host)
    assert reason is Reason.LOST
    assert texts[-1].endswith("its processes cannot be seen without /proc")


def test_host_as_pid_1_keeps_no_zombie_without_pidfds(database):
    """The first process of a container gets the supervisors that end, and reaps them by pid."""

    def host():
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        forbid("pidfd_open")
        with JobManager(database, slots=2) as jobs:
            codes = [
                jobs.wait(jobs.submit(["sh", "-c", "exit 3"]).id, PATIENCE).exit_code
                for _ in range(3)
            ]
        until(lambda: not children(), "the end and the reaping of all children")
        return codes

    assert in_child(host) == [3, 3, 3]


def test_a_command_gets_no_descriptor_that_cannot_be_listed(database):
    """Without `close_range` and without /proc the lock is closed in the command all the same."""

    def host():
        forbid("close_range")
        mount_tmpfs("/proc", "64k")
        with JobManager(database, slots=1) as jobs:
            job = jobs.submit([sys.executable, "-c", FIND_OPEN])
            jobs.wait(job.id, PATIENCE)
            return [line.text for line in jobs.logs(job.id)]

    assert in_own_mounts(host) == ["0", "1", "2", "7", str(progress.DESCRIPTOR)]


def test_a_file_without_a_name_replaces_one_in_memory(monkeypatch):
    """It is in a place for temporary files, empty, and nobody finds it there."""
    monkeypatch.delattr(os, "memfd_create")
    descriptor = system_calls.make_memory_file("input")
    facts = os.fstat(descriptor)
    os.close(descriptor)

    assert (facts.st_nlink, facts.st_size, facts.st_mode & 0o777) == (0, 0, 0o600)
    monkeypatch.setattr(system_calls, "_TEMPORARY", ("/proc", "/no/such/place"))
    with pytest.raises(OSError, match="no memfd_create, and no temporary file in /proc"):
        system_calls.make_memory_file("input")


def test_shortage_of_descriptors_does_not_disable_pidfds(monkeypatch):
    """A failure for lack of descriptors is not remembered as "no pidfds"."""
    monkeypatch.setattr(system_calls, "known_pidfds", [])
    open_it = os.pidfd_open

    def none_left(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        system_calls.open_process(os.getpid())
    monkeypatch.setattr(os, "pidfd_open", open_it)
    os.close(system_calls.open_process(os.getpid()))


def test_a_filter_that_comes_later_is_noticed(monkeypatch):
    """A host that forbids itself more and more goes on without pidfds."""
    monkeypatch.setattr(system_calls, "known_pidfds", [True])

    def forbidden(_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    with pids.ProcessHandle(os.getpid()) as process:
        process.signal(0)
    with pytest.raises(system_calls.NoPidfdError):
        system_calls.open_process(os.getpid())


def test_an_old_sqlite_is_refused_with_the_remedy(database, monkeypatch):
    """The text names both versions, and what to install."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.31.1")

    with pytest.raises(
        StoreError, match=r"SQLite 3\.31\.1 is too old: 3\.37\.0 or later is needed"
    ):
        Database(database)
    assert "install" in schema.too_old("3.31.1")
    assert not os.path.exists(database)


@pytest.mark.parametrize("named", [False, True])
def test_a_python_without_ctypes_is_refused_with_the_remedy(database, tmp_path, monkeypatch, named):
    """Its supervisors could not start; a manager without slots does not need ctypes."""
    monkeypatch.setitem(sys.modules, "_ctypes", None)
    JobManager(database, slots=0).close()
    if named:
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\nprintf 54069007; exit 1\n")
        python.chmod(0o755)
        with JobManager(database, slots=1, python=str(python)) as jobs:
            job = jobs.submit(["true"])
            with pytest.raises(SpawnError, match=r"was built without ctypes.*`python=`"):
                jobs.wait(job.id, PATIENCE)
    else:
        with pytest.raises(SpawnError, match=r"was built without ctypes.*`python=`"):
            JobManager(database, slots=1)


def test_python_without_sqlite_gets_one_clear_line():
    """One that was built without it ends with a line that names the module."""
    source = "import sys; sys.modules['_sqlite3'] = None; from jobcore import JobManager"
    ended = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
        check=False,
    )

    assert ended.returncode == 1
    assert "_sqlite3" in ended.stderr.splitlines()[-1]
