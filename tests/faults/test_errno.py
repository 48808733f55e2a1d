"""
System calls that fail: whichever one and at whatever moment, there is a typed error or success.

`strace` lets the Nth call of a kind fail in a host, and in its supervisors and commands.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import shutil
import signal
import subprocess
import time
import traceback

import pytest

from jobcore import JobcoreError, JobManager
from tests.faults import invariants
from tests.faults.rounds import in_rounds
from tests.jobfiles import sql
from tests.processes import PATIENCE, until

#: Seconds that a host waits for its job: supervisors may have to be started again.
LONGEST = 20.0
#: Each kind of call, with the errors that it may meet, an error a campaign.
FAULTS = [
    ("write", "ENOSPC"), ("write", "EIO"), ("write", "EINTR"),
    ("writev", "ENOSPC"), ("writev", "EIO"),
    ("pwrite64", "ENOSPC"), ("pwrite64", "EIO"),
    ("fsync", "EIO"), ("fdatasync", "EIO"), ("fdatasync", "ENOSPC"),
    ("openat", "EMFILE"), ("openat", "EACCES"), ("openat", "EINTR"),
    ("?rename,?renameat,?renameat2", "EIO"), ("?rename,?renameat,?renameat2", "ENOSPC"),
    ("?mkdir,mkdirat", "ENOSPC"), ("?mkdir,mkdirat", "EROFS"), ("?mkdir,mkdirat", "EACCES"),
    ("pipe2", "EMFILE"), ("?fork,?vfork,clone,clone3", "EAGAIN"), ("execve", "EACCES"),
    ("?mknod,mknodat", "ENOSPC"), ("?mknod,mknodat", "EROFS"),
    ("fcntl", "EAGAIN"), ("fcntl", "EIO"), ("?stat,?newfstatat,?fstat", "EACCES"),
    ("memfd_create", "EMFILE"), ("ftruncate", "EIO"), ("socketpair", "EMFILE"),
    ("sendmsg", "EAGAIN"), ("getdents64", "EIO"), ("?unlink,unlinkat", "EIO"),
]  # fmt: skip
#: Of which call it is: the first ones, and then some; until none fails any more.
MOMENTS = (1, 2, 3, 4, 5, 6, 8, 11, 15, 20, 30, 45, 70, 100)


def run_one(database):
    """Be a host: run one job, and return what came of it."""
    with JobManager(database, slots=1, busy_timeout=1.0) as jobs:
        job = jobs.submit(["sh", "-c", "echo hello; exit 3"])
        job = jobs.wait(job.id, LONGEST)
        return str(job.status), job.exit_code, [line.text for line in jobs.logs(job.id)]


class Traced:
    """A forked host that waits to be let go, and tells by `writev`, which may fail as well."""

    def __init__(self, database):
        gate, self._gate = os.pipe()
        self._answer, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.read(gate, 1)
            try:
                told = ("done", run_one(database))
            except JobcoreError as error:
                told = ("typed", repr(error))
            except BaseException:  # noqa: BLE001 - which is what must not be
                told = ("untyped", traceback.format_exc())
            with contextlib.suppress(BaseException):
                for _ in range(2):
                    with contextlib.suppress(OSError):
                        os.writev(answer, [pickle.dumps(told)])
                        break
            os._exit(0)
        os.close(gate)
        os.close(answer)

    def go(self):
        """Let it begin."""
        os.write(self._gate, b"!")
        os.close(self._gate)

    def told(self):
        """Return what it says, or that it says nothing."""
        if not select.select([self._answer], [], [], LONGEST + PATIENCE)[0]:
            return "silent", "it came to no end"
        said = os.read(self._answer, 65536)
        return pickle.loads(said) if said else ("silent", "it died")

    def end(self):
        """Have it dead and reaped."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._answer)


def run_traced(folder, call, error, moment, *, all_of_it):
    """Run a host in which that call fails; return what it tells, and whether one did fail."""
    database = f"{folder}/jobs.db"
    traced = Traced(database)
    said = f"{folder}/strace"
    tracer = subprocess.Popen(
        [
            *("strace", "-o", said, "-e", f"trace={call}"),
            *("-e", f"inject={call}:error={error}:when={moment}"),
            *(["-f"] if all_of_it else []),
            *("-p", str(traced.pid)),
        ],
        stderr=subprocess.PIPE,
    )
    try:
        assert b"attached" in tracer.stderr.readline()
        traced.go()
        told = traced.told()
    finally:
        traced.end()
        tracer.terminate()  # it lets go of supervisors that are still there
        tracer.wait(PATIENCE)
        tracer.stderr.close()
    with open(said, errors="replace") as file:
        return told, "(INJECTED)" in file.read()


def see_what_is_left(database):
    """Run what is left to its end without faults, and hold it against the invariants."""
    with JobManager(database, slots=1) as jobs:
        until(
            lambda: (
                jobs.recover() is not None
                and sum(jobs.count_jobs(status=["QUEUED", "RUNNING"]).values()) == 0
            ),
            "the end of all jobs",
        )
        jobs.drain(PATIENCE)
        invariants.check(jobs)
        found = jobs.list_jobs()
    assert len(found) <= 1
    assert [job.status for job in found] in ([], ["ERROR"])
    assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"


def is_untrue(told, *, all_of_it):
    """Tell whether a host was told what cannot be: the command says hello, and exits with 3."""
    kind, came = told
    if kind != "done":
        return False
    status, code, lines = came
    if status != "ERROR":
        return True
    # The calls of the command itself may fail as well, and make it end or say what they like.
    return not all_of_it and code is not None and (code, lines) != (3, ["hello"])


def plan(rounds):
    """Yield call, error and whether in supervisors, too, in the order of the campaign."""
    every = [(*fault, deep) for fault in FAULTS for deep in (True, False)]
    if rounds.facts["full"]:
        return every
    return rounds.chance().sample(every, rounds.total)


@pytest.fixture(scope="module")
def strace(tmp_path_factory):
    """Skip where calls cannot be made to fail; else have loaded here all that hosts will need."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace here")
    works = ["strace", "-f", "-e", "trace=getppid", "-e", "inject=getppid:error=EIO:when=1", "true"]
    tried = subprocess.run(works, capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"strace may not trace here: {tried.stderr.decode().strip()}")
    run_one(str(tmp_path_factory.mktemp("strace") / "jobs.db"))


@pytest.mark.usefixtures("strace")
@in_rounds(smoke=6, full=400, long=True)
def test_a_call_that_fails_is_told_or_made_good(tmp_path, rounds):
    """The host has its job's end or a JobcoreError in time, and what is left is in order."""
    wrong, runs = [], 0
    for call, error, deep in plan(rounds):
        moments = MOMENTS if rounds.facts["full"] else [rounds.chance(runs).choice(MOMENTS[:8])]
        for moment in moments:
            if runs >= rounds.total:
                break
            folder = tmp_path / str(runs)
            folder.mkdir()
            begun = time.monotonic()
            told, fired = run_traced(folder, call, error, moment, all_of_it=deep)
            which = f"{call} {error} {moment} {'deep' if deep else 'flat'}"
            print(which, *told)  # shown where the campaign fails
            if told[0] not in ("done", "typed") or is_untrue(told, all_of_it=deep):
                wrong.append(f"{which}: {told[0]} {told[1]}")
            assert time.monotonic() - begun < LONGEST + 2 * PATIENCE
            try:
                see_what_is_left(f"{folder}/jobs.db")
            except Exception as problem:  # noqa: BLE001 - all that was found is told at once
                wrong.append(f"{which}, afterwards: {problem!r}")
                print(wrong[-1])
            runs += 1
            rounds.did(1)
            if not fired:
                break

    assert wrong == [], "\n\n".join(wrong)
