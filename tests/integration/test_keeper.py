"""The keeper: what it forks is like other supervisors, and it may die, stop or refuse any time."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from jobcore import JobManager, Reason, SpawnError, Status, tuning
from jobcore.embedding import failpoints
from jobcore.engine import launcher
from jobcore.engine.keeper import KEEPER
from jobcore.engine.launcher import ProcessLauncher
from jobcore.engine.postponement import SUPERVISORS
from jobcore.engine.supervisor_pool import SupervisorPool
from tests import programs
from tests.faults import escapes
from tests.faults.hosts import host as process
from tests.integration.supervision_harness import Host, is_alive
from tests.processes import (
    PATIENCE,
    carrying,
    descriptors,
    in_child,
    left_open,
    run_python,
    state,
    stop,
    until,
)

pytestmark = pytest.mark.cold_supervisors

_LIBC = ctypes.CDLL(None)
_SUBREAPER = 36
_NO_NEW_PRIVILEGES = 38  # of <linux/prctl.h>
_NEW_HOST_NAME = 0x04000000  # CLONE_NEWUTS of <linux/sched.h>
#: What the keeper's program begins with.
_IMPORT = "from jobcore.supervisor.keeper import main\n"


@pytest.fixture(autouse=True)
def _no_keeper_and_no_failures_before():
    """Forget the failures of other tests, after which a host does without a keeper for a while."""
    KEEPER._reset()
    yield
    if KEEPER.current is not None:  # a test has failed
        KEEPER._dismiss()


def start(pool):
    """Start a supervisor, and return it once it is ready or gone."""
    supervisor = pool.spawn()
    wait_for(pool, supervisor)
    return supervisor


def wait_for(pool, supervisor):
    """Wait until a supervisor is ready or gone."""
    until(lambda: pool.receive(supervisor) or supervisor.ready or supervisor.gone, "its start")


def two(pool):
    """Return a supervisor that was started, and one that a keeper has forked, both ready."""
    found = start(pool), start(pool)
    keeper = found[1].keeper
    until(lambda: keeper.receive() or keeper.pid, "the keeper is ready")
    return found


def another(pool):
    """Return one more supervisor, as a manager gets it."""
    while not (supervisor := start(pool)).ready:
        pool.remove_gone(supervisor)
    return supervisor


def parent_of(pid):
    """Return the parent of a process."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def facts_of(pid):
    """Return what of a process must not depend on how it was started."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        kept = ("Sig", "Shd", "Cap", "Uid", "Gid", "Groups", "NoNewPrivs", "Cpus_allowed")
        found = {line for line in file if line.startswith(kept) and not line.startswith("SigQ")}
    opened = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    found |= {f"open {to.partition(':[')[0]} {opened.count(to)}" for to in opened}
    for name in ("limits", "cgroup", "oom_score_adj"):
        with open(f"/proc/{pid}/{name}", encoding="ascii") as file:
            found.add(file.read())
    found.add(os.readlink(f"/proc/{pid}/cwd"))
    return found


# --- what it forks ---


def test_all_but_the_first_supervisor_of_a_pool_are_forked(host):
    """A host that starts one supervisor has no keeper; for the second one it has."""
    started, forked = two(host.pool)
    host.pids |= {started.pid, forked.pid}

    assert (started.keeper, forked.keeper) == (None, KEEPER.current)
    assert parent_of(forked.pid) == KEEPER.current.pid
    assert os.getsid(forked.pid) == forked.pid


def test_forked_supervisor_is_like_a_started_one(host):
    """Neither it nor its command has another state, or other descriptors."""
    started, forked = two(host.pool)
    host.pids |= {started.pid, forked.pid}
    assert facts_of(started.pid) == facts_of(forked.pid)

    states = [host.run(programs.TELLS_ITS_STATE, each).output() for each in (started, forked)]
    ends = [host.run(programs.EXIT_3, each).exit.wait_status for each in (started, forked)]

    assert states[0] == states[1]
    assert ends == [3 << 8] * 2


def test_host_whose_keeper_is_closed_leaves_nothing():
    """Its socket is closed, and it ends when its supervisors have ended."""
    before = descriptors()
    pool = SupervisorPool()
    keeper = two(pool)[1].keeper
    pool.close()

    assert KEEPER.current is None
    until(lambda: not is_alive(keeper.pid), "its end")
    assert left_open(before) == {}


def test_two_managers_share_it(host):
    """It is closed with the last pool that has used it."""
    pool = SupervisorPool(host.pool._launcher)
    mine, theirs = two(host.pool)[1], two(pool)[1]
    host.pids.add(mine.pid)

    assert mine.keeper is theirs.keeper
    pool.close()
    assert KEEPER.current is mine.keeper
    assert host.run(programs.EXIT_3, mine).exit.wait_status == 3 << 8


def test_two_interpreters_do_not_take_the_keeper_from_each_other(host):
    """A process has one keeper; one that is replaced before it is ready has forked all the same."""
    pool = SupervisorPool(ProcessLauncher(os.path.realpath(sys.executable)))
    asked = [(each, each.spawn()) for each in (host.pool, pool, host.pool, pool)]
    for each, supervisor in asked:
        wait_for(each, supervisor)
    keepers = {supervisor.keeper for _, supervisor in asked}
    host.pids |= {supervisor.pid for _, supervisor in asked}
    pool.close()

    assert all(pid is not None for pid in host.pids)
    assert len(keepers) == 3  # none, and one of each


def test_idle_keeper_is_dismissed(host, monkeypatch):
    """Its supervisor goes on, and another keeper is started when it is needed."""
    forked = two(host.pool)[1]
    host.pids.add(forked.pid)
    monkeypatch.setattr(tuning, "IDLE_KEEPER", 0.0)
    host.pool.remove_idle()

    assert KEEPER.current is None
    assert host.run(programs.EXIT_3, forked).exit.wait_status == 3 << 8
    monkeypatch.undo()
    assert another(host.pool).keeper is not forked.keeper


# --- a supervisor that is killed ---


def test_nothing_escapes_a_keeper(host):
    """It kills what a killed supervisor leaves, without a manager that looks for it."""
    two(host.pool)
    for name in escapes.NAMES:
        forked = another(host.pool)
        assert forked.keeper is not None
        mark = str(int.from_bytes(os.urandom(6), "big"))
        run = host.start(escapes.escape(name, mark), forked)
        run.wait_for_output()

        os.kill(forked.pid, signal.SIGKILL)

        until(lambda mark=mark: not escapes.marked(mark), f"the end of what {name}")
        host.pool.discard(forked)


def test_other_supervisors_of_a_keeper_are_left_alone(host):
    """A job beside the one whose supervisor was killed has its own end."""
    forked, other = two(host.pool)[1], another(host.pool)
    host.pids |= {forked.pid, other.pid}
    run, beside = (host.start(programs.SLEEPS, each) for each in (forked, other))
    run.wait_for_output()
    beside.wait_for_output()

    os.kill(forked.pid, signal.SIGKILL)
    until(lambda: state(forked.pid) == "X", "its reaping")
    beside.stop(1)

    assert host.finish(beside).reason == "stopped"


# --- a keeper that dies, stops or refuses ---


def test_supervisors_outlive_their_keeper(host):
    """Their jobs have their ends, and the next supervisor is started without a keeper."""
    forked = two(host.pool)[1]
    host.pids.add(forked.pid)
    run = host.start(programs.SLEEPS, forked)
    run.wait_for_output()
    os.kill(forked.keeper.pid, signal.SIGKILL)
    until(lambda: not is_alive(forked.keeper.pid), "its end")

    following = [another(host.pool).keeper for _ in range(2)]
    run.stop(1)

    assert host.finish(run).reason == "stopped"
    assert following[0] is None
    assert following[1] not in (None, forked.keeper)


@pytest.mark.parametrize("keeper_first", [True, False])
def test_command_dies_with_supervisor_and_keeper(host, keeper_first):
    """The kernel kills it, whichever of the two dies first."""
    forked = two(host.pool)[1]
    run = host.start(programs.SLEEPS, forked)
    run.wait_for_output()
    command = host.wait_for_start(run)
    both = [forked.pid, forked.keeper.pid]
    for pid in reversed(both) if keeper_first else both:
        os.kill(pid, signal.SIGKILL)

    until(lambda: not is_alive(command), "the end of the command")


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_keeper_that_does_not_answer_is_no_failure(host, how):
    """A supervisor that it should have forked is started; one that is stopped is woken."""
    keeper = two(host.pool)[1].keeper
    stop(keeper.pid)
    asked = host.pool.spawn()
    assert asked.keeper is keeper
    if how == "killed":
        os.kill(keeper.pid, signal.SIGKILL)
    else:
        host.pool.wake_stopped()
    until(lambda: host.pool.receive(asked) or asked.ready or asked.gone, "an answer")

    assert asked.ready == (how == "stopped")
    if asked.gone:
        host.pool.remove_gone(asked)
        assert another(host.pool).keeper is None
    assert host.pool._postponed.delay(SUPERVISORS) == 0


def test_keeper_that_gets_sigterm_forks_no_more(host):
    """It waits for its supervisors, and the host has the next one from elsewhere."""
    forked = two(host.pool)[1]
    host.pids.add(forked.pid)
    os.kill(forked.keeper.pid, signal.SIGTERM)
    until(lambda: forked.keeper.receive() or forked.keeper.gone, "its refusal")

    assert another(host.pool).keeper is None
    assert is_alive(forked.keeper.pid)
    host.pool.discard(forked)
    until(lambda: not is_alive(forked.keeper.pid), "its end")


def test_keeper_that_never_works_costs_little(host, monkeypatch):
    """After each failure twice as many supervisors are started without one."""
    monkeypatch.setattr(launcher, "_KEEPER_STUB", "raise SystemExit")
    asked = []
    fork = KEEPER.fork
    monkeypatch.setattr(KEEPER, "fork", lambda *args: asked.append(fork(*args)) or asked[-1])
    for _ in range(8):
        one = another(host.pool)
        host.pids.add(one.pid)
        host.pool.discard(one)

    # The first one asks nobody; then each 0 is a keeper that failed.
    assert [int(one is None) for one in asked] == [0, 1, 0, 1, 1, 0, 1, 1, 1, 1]


# --- the inheritance ---


def change_score():
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("77")


CHANGES = {
    "groups": lambda: os.setgroups([1, 2, 3]),
    "limit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY)),
    "nice": lambda: os.nice(1),
    "processors": lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]),
    "no new privileges": lambda: _LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0),
    "score": change_score,
    "user": lambda: os.setresuid(65534, 0, 0),
    "namespace": lambda: _LIBC.unshare(_NEW_HOST_NAME),
}


def inherited_by(pid):
    """Return what tells a process that was started after one of the changes."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        kept = ("Uid", "Groups", "NoNewPrivs", "Cpus_allowed:")
        found = [line.split() for line in file if line.startswith(kept)]
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        found += [line.split() for line in file if "core" in line]
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        found.append(file.read().rpartition(")")[2].split()[16])
    found.append(os.readlink(f"/proc/{pid}/ns/uts") if os.geteuid() == 0 else "")
    return found


def host_that_changes(name):
    """Return what supervisors inherit before and after, what the host has, and if it stays."""
    pool = SupervisorPool()
    resource.setrlimit(resource.RLIMIT_CORE, (4096, resource.RLIM_INFINITY))
    before = two(pool)[1]
    found = [inherited_by(before.pid)]
    CHANGES[name]()
    after = another(pool)
    found += [inherited_by(after.pid), inherited_by(os.getpid())]
    same = after.keeper is before.keeper
    pool.close()
    return *found, same


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change all of this")
@pytest.mark.parametrize("name", sorted(CHANGES))
def test_host_that_changes_gets_supervisors_that_have_changed(name):
    """A keeper that was started before the change is not used after it."""
    before, after, own, same = in_child(host_that_changes, name)

    if name != "score":  # a supervisor has one of its own
        assert before != after
    assert after == own
    assert not same


def host_that_gives_up_its_user():
    """Return the user of the next supervisor; None: nobody may run this interpreter."""
    pool = SupervisorPool()
    two(pool)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    try:
        return inherited_by(another(pool).pid)[0]
    except SpawnError:
        return None
    finally:
        pool.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its user")
def test_host_that_gives_up_its_user_gets_no_supervisors_of_the_former_one():
    """A server that calls setuid after its first job does not run the next ones as root."""
    assert in_child(host_that_gives_up_its_user) in (["Uid:", *["65534"] * 4], None)


def test_keeper_that_was_changed_refuses(host):
    """A limit that somebody gives to the keeper alone does not reach a supervisor."""
    forked = two(host.pool)[1]
    host.pids.add(forked.pid)
    resource.prlimit(forked.keeper.pid, resource.RLIMIT_CORE, (0, 0))
    after = another(host.pool)
    host.pids.add(after.pid)

    assert after.keeper is None
    assert resource.prlimit(after.pid, resource.RLIMIT_CORE) == resource.getrlimit(
        resource.RLIMIT_CORE
    )


def test_keeper_whose_library_was_removed_refuses(host, monkeypatch, tmp_path):
    """What supervisors import for some jobs is gone, or is that of another version."""
    library = tmp_path / "os.py"
    library.touch()
    trap = f"import os\nos.__file__ = {str(library)!r}\n"
    stub = launcher._KEEPER_STUB.replace(_IMPORT, _IMPORT + trap)
    monkeypatch.setattr(launcher, "_KEEPER_STUB", stub)
    keeper = two(host.pool)[1].keeper
    assert another(host.pool).keeper is keeper

    library.unlink()

    assert another(host.pool).keeper is not keeper
    assert keeper.gone


# --- the host ---


def host_above_its_keeper():
    """Return what `waitpid` finds after a keeper has died before a supervisor that was let go."""
    _LIBC.prctl(_SUBREAPER, 1, 0, 0, 0)
    before = descriptors()
    pool = SupervisorPool()
    forked = two(pool)[1]
    os.kill(forked.pid, signal.SIGSTOP)
    pool.close()
    os.kill(forked.keeper.pid, signal.SIGKILL)
    until(lambda: parent_of(forked.pid) == os.getpid(), "the supervisor is ours")
    os.kill(forked.pid, signal.SIGCONT)
    until(lambda: not is_alive(forked.pid), "the supervisor has ended")
    until(lambda: pool.reap() or not left_open(before), "all are reaped")
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None


def test_host_that_reaps_orphans_reaps_supervisors_of_a_dead_keeper():
    """A host that is PID 1, or a subreaper, gets them from the keeper, and leaves no zombie."""
    assert in_child(host_above_its_keeper) is None


def test_forked_host_has_a_keeper_of_its_own(host):
    """The child does not use its parent's, also where threads run; the parent goes on with it."""
    forked = two(host.pool)[1]
    host.pids.add(forked.pid)
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        child = in_child(forked_host, host.pool, KEEPER.current.fileno())
    finally:
        over.set()
        thread.join()

    assert child == (True, False, True, True)
    assert KEEPER.current is forked.keeper
    assert another(host.pool).keeper is forked.keeper


def forked_host(pool, keeper):
    """Return whether it has neither the keeper nor its socket, and gets supervisors."""
    try:
        os.fstat(keeper)
        opened = True
    except OSError:
        opened = False
    none = KEEPER.current is None
    first, second = two(pool)
    found = none, opened, first.keeper is None, second.keeper is KEEPER.current
    pool.close()
    return found


def host_of_a_parent_without():
    pool = SupervisorPool()
    keeper = two(pool)[1].keeper
    pool.close()
    return keeper is not None


def test_forked_host_of_a_host_without_a_keeper_has_one():
    """A worker that a server has forked before its first job is a host like any other."""
    assert in_child(host_of_a_parent_without)


EXECUTES = """
import os, time
from jobcore.engine.keeper import KEEPER
from jobcore.engine.supervisor_pool import SupervisorPool
pool = SupervisorPool()
pids = []
for _ in range(2):
    one = pool.spawn()
    while not one.ready:
        pool.receive(one)
        time.sleep(0.002)
    pids.append(one.pid)
while KEEPER.current.pid is None:
    KEEPER.current.receive()
    time.sleep(0.002)
print(KEEPER.current.pid, *pids, flush=True)
os.execvp("cat", ["cat"])
"""


def test_keeper_ends_when_its_host_executes_another_program():
    """Nobody needs it any more, though the process is the same."""
    with subprocess.Popen(
        [sys.executable, "-c", EXECUTES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        pids = list(map(int, program.stdout.readline().split()))
        until(lambda: not any(map(is_alive, pids)), "the end of keeper and supervisors")
        assert len(pids) == 3
        assert program.poll() is None
        program.stdin.close()


def closes_its_descriptors():
    """Return whether a supervisor is started, and the keeper ends."""
    pool = SupervisorPool()
    keeper = two(pool)[1].keeper
    os.closerange(3, 256)
    after = another(pool)
    until(lambda: not is_alive(keeper.pid), "its end")
    return after.ready, after.keeper


def test_host_that_closes_all_its_descriptors_gets_supervisors():
    """They are started without the keeper, which has ended."""
    assert run_python(CLOSES) == "True None\n"


CLOSES = """
from tests.integration.test_keeper import closes_its_descriptors
print(*closes_its_descriptors())
"""


def serve(say, root):
    """Be a host with a job in a forked supervisor, and say who they are."""
    os.mkdir(root)
    host = Host(root)
    forked = two(host.pool)[1]
    run = host.start(programs.SLEEPS, forked)
    run.wait_for_output()
    say(f"{forked.keeper.pid} {forked.pid} {host.wait_for_start(run)}")
    signal.pause()


@pytest.mark.parametrize("supervisor_too", [False, True])
def test_keeper_ends_after_its_host_and_its_last_supervisor(tmp_path, supervisor_too):
    """While a job runs it stays, to kill what a supervisor may leave."""
    with process(serve, tmp_path / "host") as killed:
        keeper, supervisor, command = map(int, killed.hear().split())
        killed.kill()
    until(lambda: parent_of(supervisor) == keeper, "it is its child")
    assert is_alive(keeper)

    os.kill(supervisor if supervisor_too else command, signal.SIGKILL)

    until(lambda: not any(map(is_alive, (keeper, supervisor, command))), "the end of all")


# --- managers ---


def burst(say, database, point, victim):
    """Be a host that has many jobs at once, and kills one of its processes at a failpoint."""

    def strike(reached, _whose):
        if reached != point:
            return
        failpoints.disarm(strike)
        if victim == "host":
            os.kill(os.getpid(), signal.SIGKILL)
        keeper = KEEPER.current
        if keeper is not None:
            until(lambda: keeper.receive() or keeper.pid or keeper.gone, "it is ready")
            os.kill(keeper.pid, signal.SIGKILL)

    failpoints.arm(strike)
    with JobManager(database, slots=4) as jobs:
        made = jobs.submit_many([["sh", "-c", "echo x; exit 3"]] * 8)
        for job in made:
            jobs.wait(job.id, PATIENCE)
    say("done")


@pytest.mark.parametrize("victim", ["host", "keeper"])
@pytest.mark.parametrize("point", [failpoints.KEEPER_STARTED, failpoints.KEEPER_ASKED])
def test_jobs_are_true_when_a_process_is_killed_at_a_step_of_the_host(database, point, victim):
    """All of them end by themselves, or are run by the next host; none is lost or run twice."""
    with process(burst, database, point, victim) as killed:
        said = killed.hear()
        killed.kill()
    assert said == ("done" if victim == "keeper" else "")
    with JobManager(database, slots=4) as jobs:
        ended = [jobs.wait(job.id, PATIENCE) for job in jobs.list_jobs()]

    assert {(job.status, job.exit_code) for job in ended} <= {
        (Status.ERROR, 3),
        (Status.ERROR, None),  # its host was killed between claim and start
    }
    if victim == "keeper":
        assert [job.exit_code for job in ended] == [3] * 8


NEWEST_CHILD = "max(map(int, open('/proc/thread-self/children').read().split()))"
TRAP = """
import os, signal
from jobcore.embedding import failpoints
def strike(point, _whose, count=[0]):
    if point == {point!r}:
        count[0] += 1
        if count[0] == {nth}:
            os.kill({whom}, signal.SIGKILL)
failpoints.arm(strike)
"""


def set_trap(monkeypatch, point, nth, whom):
    """Have each keeper kill a process when it reaches a failpoint for the nth time."""
    assert _IMPORT in launcher._KEEPER_STUB
    trap = TRAP.format(point=point, nth=nth, whom=whom)
    stub = launcher._KEEPER_STUB.replace(_IMPORT, _IMPORT + trap)
    monkeypatch.setattr(launcher, "_KEEPER_STUB", stub)


@pytest.mark.parametrize("whom", ["os.getpid()", NEWEST_CHILD], ids=["keeper", "supervisor"])
@pytest.mark.parametrize("nth", [1, 2])
def test_jobs_are_true_when_a_process_is_killed_while_a_supervisor_is_forked(
    database, monkeypatch, whom, nth
):
    """A keeper, or a supervisor that has hardly begun, is replaced, and every job runs."""
    set_trap(monkeypatch, failpoints.SUPERVISOR_FORKED, nth, whom)
    with JobManager(database, slots=3) as jobs:
        made = jobs.submit_many([["sh", "-c", "echo x; exit 3"]] * 6)
        ended = [jobs.wait(job.id, PATIENCE) for job in made]

    others = [job for job in ended if job.exit_code != 3]
    assert len(others) <= (whom == NEWEST_CHILD)  # it may have got ready and been sent a job
    assert {job.reason for job in others} <= {Reason.NEVER_STARTED, Reason.LOST}


def test_keeper_that_dies_when_it_reaps_leaves_the_job_to_the_next_look(database, monkeypatch):
    """Who kills what a supervisor has left is the next manager then, as without a keeper."""
    set_trap(monkeypatch, failpoints.SUPERVISOR_REAPED, 1, "os.getpid()")
    mark = f"JOBCORE_TEST_MARK={os.urandom(8).hex()}"
    leaves = ["sh", "-c", "setsid sleep 300 & echo ready; exec sleep 300"]
    with JobManager(database, slots=2) as jobs:
        made = [jobs.submit(leaves, env=dict([mark.split("=")])) for _ in range(2)]
        for job in made:
            assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        for one in jobs._dispatcher._pool.supervisors:
            os.kill(one.pid, signal.SIGKILL)
        ended = [jobs.wait(job.id, PATIENCE) for job in made]
        left = carrying(mark)

    assert [job.exit_code for job in ended] == [None, None]
    assert left == []
