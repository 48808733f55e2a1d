"""Fixtures: a clock that stands still, a database on disk, and managers that leave nothing."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sqlite3
import sys
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings

import jobcore
from jobcore import JobManager, tuning
from jobcore.engine.keeper import KeeperOfHost
from jobcore.engine.launcher import ProcessLauncher
from jobcore.operations import staging, submission
from jobcore.storage.database import Database
from jobcore.supervisor import execution, file_upkeep
from jobcore.testing import ManualClock
from tests import opens
from tests.faults import report
from tests.faults.fork_server import ForkServer
from tests.faults.report import pytest_terminal_summary  # noqa: F401 - a hook
from tests.faults.rounds import SEED, SOAK, Rounds, campaign, spread
from tests.jobfiles import Scripted
from tests.processes import carrying, descriptors, end_forked, left_open, own_threads, until
from tests.tasks import task

# Hundreds of subprocesses import jobcore, and each worker rewrites every test module. Where the
# environment turns bytecode files off, as containers do, half of a run would be compiling.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Speed is nothing that a test holds: several may share a slow machine.
settings.register_profile(
    "smoke", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=30
)
settings.register_profile("full", settings.get_profile("smoke"), max_examples=100)

opens.watch()

#: Seconds that the full rounds of a campaign may take; other tests have pyproject.toml's limit.
CAMPAIGN_TIMEOUT = 1800 * max(1, SOAK)
#: Seconds after which a test that was interrupted is interrupted again.
AGAIN = 60
#: Where a test keeps the limit that pytest-timeout has set for it.
LIMIT = pytest.StashKey()


def is_campaign(config):
    """Tell whether this run is that of the campaigns."""
    return config.option.markexpr == "faults"


@pytest.hookimpl(tryfirst=True)  # before test files are imported, whose decorators copy it
def pytest_sessionstart(session):
    """Have Hypothesis try some examples of a property, and many in the run of the campaigns."""
    settings.load_profile("full" if is_campaign(session.config) else "smoke")


def pytest_itemcollected(item):
    """Have properties tried in the run of the campaigns, too."""
    if is_campaign(item.config) and getattr(item.obj, "is_hypothesis_test", False):
        item.add_marker("faults")


@pytest.hookimpl(trylast=True)  # behind what picks them
def pytest_collection_modifyitems(items):
    """Begin the longest campaigns first, and give campaigns their time limit."""
    items[:] = spread(items)
    for item in items:
        if item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.timeout(CAMPAIGN_TIMEOUT))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Have one worker compile a test file in a new clone, and the others wait for it."""
    if not isinstance(collector, pytest.Module) or is_compiled(collector.path):
        return (yield)
    with collector.path.open() as source:
        fcntl.flock(source, fcntl.LOCK_EX)
        return (yield)


def is_compiled(path):
    """Tell whether there is bytecode of a test file, with its asserts rewritten by this pytest."""
    name = f"{path.stem}.{sys.implementation.cache_tag}-pytest-{pytest.__version__}.pyc"
    with suppress(FileNotFoundError):
        return path.stat().st_mtime < (path.parent / "__pycache__" / name).stat().st_mtime
    return False


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """
    Keep the objects of the collection out of garbage collections, now and later.

    None of them is garbage, and a collection in a forked child would copy the memory of all
    modules and tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


#: A file system in memory, which nearly every Linux has, and the space that a run may need there.
MEMORY, ROOM = "/dev/shm", 2 * 2**30


@pytest.hookimpl(trylast=True)  # after the hook that makes the factory
def pytest_configure(config):
    """
    Put the databases of a usual run in memory: syncing would take a fifth of all CPU time.

    The full campaigns, and a run with `--basetemp`, use a disk.
    """
    if config.option.basetemp or config.option.markexpr != "not faults":
        return
    with suppress(OSError), pytest.MonkeyPatch.context() as patch:
        facts = os.statvfs(MEMORY)
        programs_run = not facts.f_flag & os.ST_NOEXEC
        if programs_run and os.access(MEMORY, os.W_OK) and facts.f_bavail * facts.f_frsize > ROOM:
            patch.setenv("PYTEST_DEBUG_TEMPROOT", MEMORY)
        config._tmp_path_factory.getbasetemp()


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_setupnodes(config):
    """Have a quiet run say nothing of how its workers begin."""
    if config.option.verbose < 0:
        reporter = config.pluginmanager.get_plugin("terminaldistreporter")
        reporter.ensure_show_status = reporter.rewrite = lambda *_, **__: None


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item, settings):
    """Interrupt a test again and again: what catches the first time may hang once more."""
    item.stash[LIMIT] = settings
    result = yield
    if settings.method == "signal":
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, AGAIN)
    return result


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node):
    """Limit what follows a failure, too: pytest-timeout stops here, and a fixture may hang."""
    if settings := node.stash.get(LIMIT, None):
        node.ihook.pytest_timeout_set_timer(item=node, settings=settings)


@pytest.fixture(autouse=True)
def _only_harmless_opens():
    """Fail where a file was opened that must not be, whatever swallowed the error."""
    opens.refused.clear()
    yield
    assert opens.refused == []


@pytest.fixture(autouse=True)
def _no_forked_process():
    """End processes that a failed test has left: their warnings would fail another test."""
    yield
    end_forked()


@pytest.fixture(autouse=True)
def _signals_as_before():
    """Fail where signals are blocked or ignored that were not: later programs inherit it."""
    before = _signals()
    yield
    assert _signals() == before


def _signals():
    """Return the blocked and the ignored signals of this thread and process."""
    with open("/proc/thread-self/status") as status:
        return [line for line in status if line.startswith(("SigBlk", "SigIgn"))]


@pytest.fixture
def clock():
    """Return a clock that the test moves."""
    return ManualClock()


@pytest.fixture
def database(tmp_path):
    """Return a path for a database; nothing is there yet."""
    return str(tmp_path / "jobs.db")


@pytest.fixture
def gate(tmp_path):
    """Return the path of a FIFO: a command that opens it to read waits for `open_gate`."""
    os.mkfifo(tmp_path / "gate")
    return str(tmp_path / "gate")


@pytest.fixture
def jobs(database, clock):
    """Return a manager that runs nothing itself."""
    with JobManager(database, slots=0, clock=clock) as manager:
        yield manager


@pytest.fixture
def small_batches(monkeypatch):
    """Have more than 20 jobs of a call be written in steps, not more than a thousand."""
    monkeypatch.setattr(submission, "STAGED_FROM", 20)
    monkeypatch.setattr(staging, "STAGED_AT_ONCE", 10)
    return 20


@pytest.fixture
def quick_failures(monkeypatch):
    """Have what fails be tried again at once, and be persistent after a moment, not ten seconds."""
    monkeypatch.setattr(tuning, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(tuning, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(tuning, "BACK_OFF", 0.01)
    monkeypatch.setattr(tuning, "CHORES_PAUSE", 0.05)  # a manual clock wakes nobody
    monkeypatch.setattr(tuning, "PERSISTENT_SECONDS", 0.05)


@pytest.fixture
def own(jobs):
    """Return a RUNNING job without a process."""
    return task(jobs)


@pytest.fixture
def scripted(jobs, database):
    """Return a maker of RUNNING jobs whose supervisor is the test itself."""
    made = []

    def make(**options):
        made.append(Scripted(jobs, database, **options))
        return made[-1]

    yield make
    for one in made:
        one.die()


@pytest.fixture
def statements(monkeypatch):
    """Return what SQLite executes, for managers that are made behind this."""
    seen = []
    connect = Database.new_connection

    def traced(self):
        connection = connect(self)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(Database, "new_connection", traced)
    return seen


@pytest.fixture
def rounds(request):
    """Return the rounds of a campaign; see `tests.faults.rounds.in_rounds`."""
    name = campaign(request.node.originalname, request.node.callspec.id)
    made = Rounds(name, request.param)
    full = request.node.get_closest_marker("faults") is not None
    made.facts["full"] = full
    report.note(request.node, made.facts)
    yield made
    # Shown where it failed: how to have that round again, alone.
    print(f"JOBCORE_TEST_SEED={SEED} JOBCORE_TEST_ROUND={made.facts.get('round', 0)}")


@pytest.fixture(scope="session")
def fork_server():
    """Return the server that forks the supervisors of campaigns."""
    made = ForkServer(os.path.dirname(jobcore.__file__))
    yield made
    made.close()


@pytest.fixture
def warm_supervisors(fork_server, monkeypatch):
    """
    Fork this process's supervisors from one that has everything loaded.

    The start of an interpreter for each would be a third of the CPU time of all tests. Other
    processes, and managers with an interpreter of their own, start theirs as ever.
    """
    process, start = os.getpid(), ProcessLauncher.start

    def start_warm(self, descriptor):
        if os.getpid() != process or self.python != sys.executable:
            return start(self, descriptor)
        return fork_server.launcher().start(descriptor)

    monkeypatch.setattr(ProcessLauncher, "start", start_warm)
    monkeypatch.setattr(KeeperOfHost, "fork", lambda *_: None)


@pytest.fixture
def quick_upkeep(warm_supervisors, fork_server, monkeypatch):  # noqa: ARG001 - those it is for
    """Have supervisors look after their files ten times a second, not every five seconds."""
    assert file_upkeep._CHECK_EVERY == execution.Machine.longest_round == 5
    for name in ("file_upkeep._CHECK_EVERY", "execution.Machine.longest_round"):
        monkeypatch.setitem(fork_server.tuned, name, 0.1)


@pytest.fixture
def running_jobs(database, fork_server):
    """Return a manager with two slots; nothing of it may be left behind."""
    before = descriptors()
    launcher = fork_server.launcher()
    with JobManager(database, slots=2, on_exit="stop", launcher=launcher) as manager:
        yield manager
        connection = sqlite3.connect(database)
        cookies = [cookie for (cookie,) in connection.execute("SELECT cookie FROM job") if cookie]
        connection.close()
    if cookies:
        until(lambda: not carrying(*cookies), "the end of all processes of its jobs")
    until(lambda: not own_threads(), "the end of all threads")
    assert left_open(before) == {}
