"""A host that is the first process of its pid namespace, as in a container: all dies with it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from uuid import uuid4

import pytest

from jobcore import JobManager, Reason, Status, tuning
from jobcore.engine import orphans
from jobcore.engine.keeper import KeeperOfHost
from jobcore.engine.launcher import ProcessLauncher
from jobcore.engine.peer import reap_left, socket_pair
from jobcore.engine.supervisor_pool import SupervisorPool
from jobcore.supervisor import job_directory
from tests.faults.invariants import check
from tests.jobfiles import cookie_of
from tests.mounts import in_own_mounts, mount_proc
from tests.processes import PATIENCE, ROOT, carrying, children, in_child, until

#: From linux/sched.h.
_NEW_PIDS, _NEW_USER = 0x20000000, 0x10000000
_ADOPT = 36  # PR_SET_CHILD_SUBREAPER: orphans come to us, as to the first of a namespace

#: Has a job running, says so, and waits to be killed.
HOST = """
import os, sys
from jobcore import JobManager

assert os.getpid() == 1
jobs = JobManager(sys.argv[1], slots=1)
for _ in range(3):  # nobody but us can reap here
    assert jobs.wait(jobs.submit(["sh", "-c", "sleep 0 & exit 3"]).id).exit_code == 3
job = jobs.submit(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
assert next(jobs.follow(job.id)).text == "ready"
zombies = [
    name
    for name in os.listdir("/proc")
    if name.isdigit() and open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[0] == "Z"
]
print("ready", len(zombies), flush=True)
sys.stdin.read()
"""


#: Has a job that counts the SIGTERMs it gets, and sends one to its supervisor as the first
#: process of the namespace, or from another one; the first one tells the job, too.
SERVICE_MANAGER = """
import os, signal, sys
from jobcore import JobManager

COUNTS = '''
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print(os.getppid(), flush=True)
signal.sigwait([signal.SIGTERM])
print("again" if signal.sigtimedwait([signal.SIGTERM], 0.5) else "once", flush=True)
'''
jobs = JobManager(sys.argv[1], slots=1)
job = jobs.submit([sys.executable, "-I", "-S", "-c", COUNTS])
supervisor = int(next(jobs.follow(job.id)).text)
with open(f"/proc/{supervisor}/task/{supervisor}/children") as file:
    (command,) = map(int, file.read().split())
if sys.argv[2] == "first":
    os.kill(supervisor, signal.SIGTERM)
    os.kill(command, signal.SIGTERM)
elif os.fork() == 0:
    os.kill(supervisor, signal.SIGTERM)
    os._exit(0)
job = jobs.wait(job.id)
print(job.status, job.reason, *(line.text for line in jobs.logs(job.id, 1)), sep=";", flush=True)
"""


def in_container(*argv):
    """Start a command as the first process of a pid namespace, or skip the test."""
    unshare = shutil.which("unshare")
    options = ["--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        options.append("--map-root-user")
    if (
        unshare is None
        or subprocess.run([unshare, *options, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no pid namespace of one's own here")
    return subprocess.Popen(
        [unshare, *options, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_container_that_ends_is_resolved_by_the_next_one(database):
    """Host, supervisor and command die together: locks are free, and the job is lost, not stuck."""
    container = in_container(sys.executable, "-c", HOST, database)
    with container:
        try:
            # No zombie after three jobs that left children: the host reaps what comes to it.
            assert container.stdout.readline() == "ready 0\n"
        finally:
            container.kill()
        container.wait(PATIENCE)

    with JobManager(database, slots=1) as jobs:
        job = until(lambda: lost(jobs), "the resolving of the job")

        assert (job.exit_code, job.reason) == (None, Reason.LOST)
        assert jobs.count_jobs()[Status.ERROR] == 4
        words = [line.text for line in jobs.logs(job.id)]
        assert words[0] == "ready"
        assert words[-1].endswith("its processes cannot be seen from this pid namespace")
        check(jobs)


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("first", "stopping: the service manager ends the service, this command included"),
        ("another", "stopping: the supervisor was asked to exit"),
    ],
)
def test_stopping_a_service_sends_its_command_one_sigterm(database, who, words):
    """A supervisor passes the SIGTERM of the first process on only where that has not sent one."""
    container = in_container(sys.executable, "-c", SERVICE_MANAGER, database, who)
    with container:
        said, _ = container.communicate(timeout=PATIENCE)

    assert said == f"STOPPED;shutdown;{words};once\n"


def lost(jobs):
    """Return the newest job once it is final."""
    job = jobs.get_job(jobs.list_jobs(limit=1)[0].id)
    return job if job.status is Status.ERROR else None


def _idle_is_let_go(database):
    tuning.IDLE_SUPERVISOR = tuning.IDLE_KEEPER = 0.1
    ctypes.CDLL(None).prctl(_ADOPT, 1)
    with JobManager(database, slots=2) as jobs:
        for _ in range(3):
            job = jobs.submit(["true"])
            assert jobs.wait(job.id).exit_code == 0
            until(lambda: not children(), "the reaping of what was let go")
    return children()


def _keeper_is_let_go_before_it_is_ready(_database):
    tuning.IDLE_KEEPER = 0
    ctypes.CDLL(None).prctl(_ADOPT, 1)
    host, pool = KeeperOfHost(), SupervisorPool()
    ours, theirs = socket_pair()
    keeper = host.fork(theirs.fileno(), pool, ProcessLauncher())
    theirs.close()
    ours.close()
    host.remove_idle()
    assert (host.current, keeper.pid, keeper.gone) == (None, None, False)

    def reaped():
        host.remove_idle()
        reap_left()
        return not children()

    until(reaped, "the reaping of the keeper")
    assert keeper.pid is not None
    return children()


def _closed_again_and_again(database):
    ctypes.CDLL(None).prctl(_ADOPT, 1)
    left = []
    for _ in range(3):
        with JobManager(database, slots=2) as jobs:
            for job in jobs.submit_many([["true"]] * 2):
                jobs.wait(job.id)
        left.append(children())
    return left


def _closed_at_once(_database):
    ctypes.CDLL(None).prctl(_ADOPT, 1)
    pool = SupervisorPool()
    for _ in range(3):
        pool.spawn()
    pool.close()
    return children()


def _closed_with_a_job(database):
    ctypes.CDLL(None).prctl(_ADOPT, 1)
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(["sh", "-c", "echo ready; sleep 0.2"])
        next(jobs.follow(job.id))
    running = len(children())
    until(lambda: "Z" in children().values(), "the end of the supervisor that was left")
    with JobManager(database, slots=1) as jobs:
        assert jobs.wait(job.id).exit_code == 0
        until(lambda: not children(), "its reaping by the next manager")
    return running


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (_idle_is_let_go, {}),
        (_keeper_is_let_go_before_it_is_ready, {}),
        (_closed_again_and_again, [{}] * 3),
        (_closed_at_once, {}),
        (_closed_with_a_job, 1),
    ],
)
def test_host_as_pid_1_keeps_no_zombie(database, host, expected):
    """The first process of a container gets the supervisors that end, and reaps each of them."""
    assert in_child(host, database) == expected


@pytest.mark.usefixtures("quick_upkeep")
def test_running_job_without_its_files_is_not_settled_from_a_container(database):
    """A container that sees neither its supervisor nor any lock nor the boot: it keeps RUNNING."""

    def look():
        mount_proc("subset=pid")
        with JobManager(database, slots=0) as jobs:
            settled = jobs.recover()
            said = " ".join(one.detail for one in jobs.check())
            return settled, str(jobs.list_jobs()[0].status), "cannot be seen from here" in said

    def in_container():
        assert ctypes.CDLL(None).unshare(_NEW_PIDS) == 0
        return in_child(look)

    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(["sh", "-c", "echo begun; exec sleep 1000"])
        next(jobs.follow(job.id))
    path = f"{database}.jobs/{job.id.hex}"
    directory = os.open(path, os.O_RDONLY)
    supervisor = job_directory.read_record(directory, job_directory.RUN)["supervisor"]
    os.close(directory)
    os.kill(supervisor, signal.SIGSTOP)  # so that it does not restore them meanwhile
    seen = []
    try:
        for swept in ("lock", "run", "ctl"):
            os.unlink(f"{path}/{swept}")
            seen.append(in_own_mounts(in_container))
        shutil.rmtree(path)
        seen.append(in_own_mounts(in_container))
    finally:
        os.kill(supervisor, signal.SIGCONT)
    until(lambda: os.path.exists(f"{path}/run"), "the repaired files")
    seen.append(in_own_mounts(in_container))
    with JobManager(database, slots=1) as jobs:
        jobs.stop_job(job.id)
        ended = jobs.wait(job.id, PATIENCE)

    assert seen == [([], "RUNNING", True)] * 4 + [([], "RUNNING", False)]
    assert (ended.status, ended.reason) == (Status.STOPPED, Reason.STOPPED)


# --- /proc of another namespace -----------------------------------------------


def in_foreign_proc(function, *args):
    """Return what `function` returns as process 1 of a pid namespace, with the outer /proc."""

    def enter():
        flags = _NEW_PIDS | (0 if os.geteuid() == 0 else _NEW_USER)
        if ctypes.CDLL(None).unshare(flags) != 0:
            return None
        return [in_child(function, *args)]  # the namespace begins with the next fork

    answer = in_child(enter)
    if answer is None:
        pytest.skip("no pid namespace of one's own here")
    return answer[0]


def start_with_pid(pid, cookie=None):
    """Start a process that has this pid in this pid namespace; None: that cannot be had here."""
    environment = os.environ if cookie is None else {**os.environ, orphans.COOKIE: cookie}
    try:
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
            file.write(str(pid - 1))
    except OSError:
        return None
    process = subprocess.Popen(["sleep", "1000"], env=environment)
    if process.pid == pid:
        return process
    process.kill()
    process.wait()
    return None


def test_unrelated_process_with_an_orphans_number_is_not_signalled():
    """In an outer /proc the number of a leftover means another process here: that one lives."""
    cookie = uuid4().hex
    leftover = subprocess.Popen(["sleep", "1000"], env={**os.environ, orphans.COOKIE: cookie})

    def kill():
        stranger = start_with_pid(leftover.pid)
        if stranger is None:
            return None
        unreaped = orphans.kill(cookie)
        lives = stranger.poll() is None
        stranger.kill()
        stranger.wait()
        return lives, unreaped

    try:
        until(lambda: leftover.pid in orphans.find(cookie), "the exec of sleep")
        answer = in_foreign_proc(kill)
        if answer is None:
            pytest.skip("pids cannot be chosen here")
        assert answer == (True, (leftover.pid,))
        assert leftover.poll() is None
    finally:
        leftover.kill()
        leftover.wait()


def test_unrelated_process_with_a_sibling_namespaces_number_is_not_signalled():
    """A leftover of a namespace beside this one has a number that means another process here."""
    cookie = uuid4().hex
    program = f"{orphans.COOKIE}={cookie} sleep 1000 & echo $!; wait"
    beside = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", program],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        number = beside.stdout.readline()
        if not number:
            pytest.skip("no pid namespace of one's own here")
        (leftover,) = until(lambda: orphans.find(cookie), "the exec of sleep")
        assert in_foreign_proc(kill_beside, cookie, int(number)) == (True, (leftover,))
    finally:
        beside.kill()
        beside.wait()
        beside.stdout.close()


def kill_beside(cookie, number):
    """Kill leftovers beside a process with this number; tell whether it lives, and what is left."""
    stranger = start_with_pid(number)
    if stranger is None:
        pytest.skip("pids cannot be chosen here")
    unreaped = orphans.kill(cookie)
    lives = stranger.poll() is None
    stranger.kill()
    stranger.wait()
    return lives, unreaped


def test_a_leftover_of_this_namespace_is_killed_by_an_outer_proc():
    """The number of a leftover is translated, so it is found and killed."""
    cookie = uuid4().hex

    def kill():
        leftover = subprocess.Popen(["sleep", "1000"], env={**os.environ, orphans.COOKIE: cookie})
        until(lambda: orphans.find(cookie), "the exec of sleep")
        return orphans.kill(cookie), leftover.wait()

    assert in_foreign_proc(kill) == ((), -signal.SIGKILL)


def test_orphans_of_a_job_are_ended_with_an_outer_proc(database):
    """A supervisor whose /proc is an outer one finds the orphans of its job, and only these."""

    def run():
        with JobManager(database, slots=1) as jobs:
            job = jobs.submit(
                ["sh", "-c", "trap '' TERM; setsid sh -c 'while :; do sleep 1; done' & exit 3"],
                linger=0.2,
            )
            ended = jobs.wait(job.id)
            return ended.exit_code, [line.text for line in jobs.logs(job.id)]

    code, lines = in_foreign_proc(run)

    assert code == 3
    assert [line for line in lines if "could not be killed" in line] == []
    with JobManager(database, slots=0) as jobs:
        assert carrying(f"{orphans.COOKIE}={cookie_of(database, jobs.list_jobs()[0].id)}") == []
