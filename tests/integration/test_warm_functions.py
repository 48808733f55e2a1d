"""Warm interpreters: a call is as in a fresh interpreter, and they may die or refuse any time."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from contextlib import contextmanager

import pytest

from jobcore import (
    CommandError,
    CommandExecutor,
    FunctionExecutor,
    JobManager,
    NoResult,
    Reason,
    Status,
    function_command,
    tuning,
)
from jobcore.embedding import failpoints
from jobcore.engine import launcher
from jobcore.supervisor import warm
from jobcore.testing.parts import parts
from tests.faults.hosts import host as process
from tests.integration.test_keeper import NEWEST_CHILD, TRAP
from tests.processes import PATIENCE, carrying, state, stop, until

#: What a supervisor's program begins with.
_IMPORT = "from jobcore.supervisor.__main__ import main\n"

MODULE = """
    import atexit, ctypes, json, os, random, signal, subprocess, sys, threading, time
    from concurrent import futures

    LOADED_BY = os.getpid()
    VALUE = 1

    def is_warm():
        return os.getpid() != LOADED_BY

    def pids():
        return [os.getpid(), os.getppid()]

    def value():
        return [is_warm(), VALUE]

    def facts():
        with open("/proc/self/status") as file:
            status = [line for line in file if line.startswith(("Sig", "Shd", "Threads"))]
        with open("/proc/self/limits") as file:
            status += list(file)
        with open("/proc/self/comm") as file:
            status.append(file.read())
        with open("/proc/self/environ", "rb") as file:
            cookies = [one for one in file.read().split(b"\\0") if one.startswith(b"JOBCORE_RUN=")]
        umask = os.umask(0)
        wanted = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(wanted), 0, 0, 0)
        job = ("JOBCORE_RUN", "JOBCORE_JOB_ID")
        return {
            "status": [line for line in status if not line.startswith("SigQ")],
            "cookie": cookies == [b"JOBCORE_RUN=" + os.environb[b"JOBCORE_RUN"]],
            "umask": umask,
            "cwd": os.getcwd(),
            "argv": sys.argv,
            "path": sys.path,
            "flags": list(sys.flags),
            "environment": {name: os.environ[name] for name in os.environ if name not in job},
            "group": os.getpgrp() == os.getpid(),
            "session": os.getsid(0) == os.getppid(),
            "descriptors": sorted(os.listdir("/proc/self/fd")),
            "handlers": [str(signal.getsignal(one)) for one in (2, 13, 15)][:2],
            "killed by": wanted.value,
            "stdin": sys.stdin.read(),
            "buffered": [sys.stdout.line_buffering, sys.stdout.encoding, sys.stderr.encoding],
            "jobcore": [name for name in sys.modules if name.startswith("jobcore")],
            "niceness": os.nice(0),
        }

    def draws():
        return random.random()

    def raises():
        raise ValueError("no")

    def exits(code):
        print("before")
        atexit.register(print, "last")
        sys.exit(code)

    def is_interrupted():
        raise KeyboardInterrupt

    def writes_in_c():
        sys.stdout.flush()
        libc = ctypes.CDLL(None)
        libc.printf(b"from C\\n")

    def leaves_a_thread():
        threading.Thread(target=lambda: (time.sleep(0.05), print("from a thread"))).start()

    def forks():
        pid = os.fork()
        if pid == 0:
            return "child"
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]

    def runs():
        return subprocess.run(["sh", "-c", "echo $JOBCORE_JOB_ID"], capture_output=True,
                              text=True).stdout == os.environ["JOBCORE_JOB_ID"] + "\\n"

    def has_a_pool():
        with futures.ProcessPoolExecutor(2) as pool:
            return sorted(pool.map(abs, [-1, -2]))

    def waits(cleans=True):
        print("ready", flush=True)
        try:
            time.sleep(300)
        finally:
            if cleans:
                print("cleaned up")

    def ignores():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        waits()

    def leaves_an_escape():
        subprocess.Popen(["sleep", "300"], start_new_session=True, env={})
        waits()

    def appends(path, text):
        with open(path, "a") as file:
            file.write(text)
        return is_warm()
"""


@pytest.fixture(autouse=True)
def warmed(tmp_path, monkeypatch):
    """Return a module of functions that an interpreter can load; no other test has it."""
    (tmp_path / "modules").mkdir()
    path = tmp_path / "modules" / "warmed.py"
    path.write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(path.parent))
    return path


def manager(database, *, preload=("warmed",), slots=1, count=True, **options):
    """Return a manager with warm functions."""
    executors = {
        "FUNCTION": FunctionExecutor(warm=count, preload=preload),
        "COMMAND": CommandExecutor(),
    }
    return JobManager(database, slots=slots, executors=executors, **options)


def call(jobs, name, *args, **options):
    """Call a function to its end; return the job."""
    command = function_command(f"warmed:{name}", args, **options)
    return jobs.wait(jobs.submit(command, type="FUNCTION").id, PATIENCE)


def value(jobs, name, *args, **options):
    """Return what a function returns."""
    return jobs.result(call(jobs, name, *args, **options).id)


def lines(jobs, job):
    return [line.text for line in jobs.logs(job.id)]


def warm_up(jobs, **options):
    """Call functions until one is called by a process that a warm interpreter has forked."""
    until(lambda: value(jobs, "is_warm", **options), "a warm call")


def supervisor(jobs):
    """Return the pid of the only supervisor."""
    (one,) = parts(jobs).pool.supervisors
    return one.pid


def interpreters(jobs):
    """Return the pids of all warm interpreters."""
    found = []
    for one in parts(jobs).pool.supervisors:
        with open(f"/proc/{one.pid}/task/{one.pid}/children", encoding="ascii") as file:
            for pid in file.read().split():
                with open(f"/proc/{pid}/comm", "rb") as comm:
                    if comm.read().strip() == warm.NAME:
                        found.append(int(pid))
    return found


def outcome(jobs, job):
    """Return how a job has ended, and what it has printed and returned."""
    try:
        returned = jobs.result(job.id)
    except NoResult:
        returned = "none"
    return job.status, job.reason, job.exit_code, lines(jobs, job), returned


@contextmanager
def both(database, tmp_path, **options):
    """Provide two managers: functions are called fresh by one, and warm by the other."""
    fresh = str(tmp_path / "fresh.db")
    with manager(database, **options) as jobs, JobManager(fresh, slots=1) as others:
        warm_up(jobs)
        yield others, jobs


# --- as in a fresh interpreter ---


def test_call_is_like_one_in_a_fresh_interpreter(database, tmp_path):
    """Neither the state of the process nor what Python shows of itself is another."""
    with both(database, tmp_path) as managers:
        found = [value(jobs, "facts", cwd=tmp_path, umask=0o27) for jobs in managers]
        for each in found:
            assert os.path.exists(each["environment"].pop("JOBCORE_DB"))
            del each["environment"]["JOBCORE_WORKSPACE_ID"]

        assert found[0] == found[1]
        assert found[1]["cookie"] is True
        assert found[1]["jobcore"] == []


def test_call_ends_like_one_in_a_fresh_interpreter(database, tmp_path):
    """So do its exit code, its output up to the last handler, and its children."""
    calls = [
        ("raises",), ("exits", 0), ("exits", 7), ("exits", -1), ("exits", 2**40), ("exits", "why"),
        ("exits", None), ("is_interrupted",), ("writes_in_c",), ("leaves_a_thread",), ("forks",),
        ("runs",), ("has_a_pool",), ("missing",),
    ]  # fmt: skip
    with both(database, tmp_path) as managers:
        fresh, warmed = {}, {}
        for words in calls:
            warm_up(managers[1])
            fresh[words], warmed[words] = (outcome(jobs, call(jobs, *words)) for jobs in managers)

    assert warmed == fresh


@pytest.mark.parametrize("name", ["waits", "ignores", "leaves_an_escape"])
@pytest.mark.parametrize("by", ["stop", "timeout"])
def test_call_is_stopped_like_one_in_a_fresh_interpreter(database, tmp_path, name, by):
    """It cleans up, is killed after the grace, and nothing that it has started is left."""
    found, pids = [], []
    with both(database, tmp_path) as managers:
        limit = {"timeout": 2.0} if by == "timeout" else {}
        command = function_command(f"warmed:{name}", grace=0.3, **limit)
        made = [(jobs, jobs.submit(command, type="FUNCTION")) for jobs in managers]
        for jobs, job in made:
            assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        for jobs, job in made:
            if by == "stop":
                jobs.stop_job(job.id)
            ended = jobs.wait(job.id, PATIENCE)
            pids += carrying(f"JOBCORE_JOB_ID={job.id}\0")
            texts = [line for line in lines(jobs, job) if line in ("ready", "cleaned up")]
            found.append((ended.status, ended.reason, ended.exit_code, texts))

    assert found[0] == found[1]
    assert pids == []


def test_calls_do_not_draw_the_same_random_numbers(database):
    """The generator is seeded for each call."""
    with manager(database) as jobs:
        warm_up(jobs)
        drawn = {value(jobs, "draws") for _ in range(3)}

    assert len(drawn) == 3


# --- when it is not used ---


def test_changed_module_is_loaded_anew(database, warmed):
    """No call runs code that is no longer on disk, and the next interpreter has the new code."""
    with manager(database) as jobs:
        warm_up(jobs)
        assert value(jobs, "value") == [True, 1]
        warmed.write_text(textwrap.dedent(MODULE).replace("VALUE = 1", "VALUE = 22"))

        assert value(jobs, "value") == [False, 22]
        warm_up(jobs)
        assert value(jobs, "value") == [True, 22]


@pytest.mark.parametrize(
    "options", [{"env": {"TZ": "Asia/Tokyo"}}, {"inherit_env": False}], ids=["variable", "none"]
)
def test_call_with_another_environment_is_fresh(database, options):
    """Modules may have read it when they were loaded. If all are so, the interpreter follows."""
    with manager(database) as jobs:
        warm_up(jobs)
        assert not value(jobs, "is_warm", **options)
        assert value(jobs, "is_warm")
        warm_up(jobs, **options)


def test_call_with_another_search_path_is_fresh(database, tmp_path, monkeypatch):
    """It may find another module by the same name."""
    with manager(database) as jobs:
        warm_up(jobs)
        monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
        assert not value(jobs, "is_warm")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(99,)).start()",
         "the import of warmed, bad left a thread running"),
        ("import subprocess; subprocess.Popen(['sleep', '300'])",
         "the import of warmed, bad left a process running"),
        ("file = open('/dev/zero')", "the import of warmed, bad left open: /dev/zero"),
        ("import nowhere",
         "bad cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("raise SystemExit(3)", "bad cannot be imported: SystemExit: 3"),
        ("import os; raise ValueError(os.environ['PATH'])", "bad cannot be imported: ValueError"),
        ("import os; os._exit(3)", None),
    ],
    ids=["thread", "process", "descriptor", "import", "exit", "secret", "end"],
)  # fmt: skip
def test_modules_that_cannot_be_shared_are_named_once(database, warmed, source, why):
    """Calls get fresh interpreters, and a line in the log of one of them says why."""
    (warmed.parent / "bad.py").write_text(source)
    with manager(database, preload=("warmed", "bad")) as jobs:
        told = []

        def is_told():
            job = call(jobs, "is_warm")
            told.extend(lines(jobs, job))
            return told or not interpreters(jobs)

        until(is_told, "the reason")
        for _ in range(4):
            job = call(jobs, "is_warm")
            assert jobs.result(job.id) is False
            told += lines(jobs, job)

    expected = [] if why is None else [f"called in a fresh interpreter: {why}"]
    assert told == expected


def test_call_that_cannot_begin_is_not_complete(database, warmed):
    """Its process has no descriptor left, so the function was not called, and the job says so."""
    (warmed.parent / "limits.py").write_text(
        "import os, resource\n"
        "def limit():\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "os.register_at_fork(after_in_child=limit)\n"
    )
    with manager(database, preload=("warmed", "limits")) as jobs:
        ended = []

        def is_refused():
            ended.append(call(jobs, "is_warm"))
            return ended[-1].status != Status.COMPLETE

        until(is_refused, "a call that cannot begin")
        assert [jobs.result(job.id) for job in ended[:-1]] == [False] * len(ended[:-1])
        assert ended[-1].reason == Reason.SPAWN_FAILED


# --- an interpreter, a supervisor or a host that dies ---


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_interpreter_that_is_gone_or_stopped_is_replaced(database, number):
    """The next call is fresh, and a later one is warm again."""
    with manager(database) as jobs:
        warm_up(jobs)
        (before,) = interpreters(jobs)
        stop(before) if number == signal.SIGSTOP else os.kill(before, number)
        assert not value(jobs, "is_warm")
        warm_up(jobs)

        assert before not in interpreters(jobs)
        assert state(before) == "X"


def test_call_goes_on_without_its_interpreter(database):
    """It is a child of the supervisor, and ends as it would."""
    with manager(database) as jobs:
        warm_up(jobs)
        job = jobs.submit(function_command("warmed:waits"), type="FUNCTION")
        assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        (interpreter,) = interpreters(jobs)
        os.kill(interpreter, signal.SIGKILL)
        until(lambda: state(interpreter) in "ZX", "its end")
        jobs.stop_job(job.id)
        ended = jobs.wait(job.id, PATIENCE)
        until(lambda: state(interpreter) == "X", "its reaping")

        assert (ended.status, ended.reason) == (Status.STOPPED, Reason.STOPPED)
        assert "cleaned up" in lines(jobs, job)


def test_killed_supervisor_leaves_neither_call_nor_interpreter(database):
    """The kernel kills both, the next look finds what the call has left, and the job is lost."""
    with manager(database) as jobs:
        warm_up(jobs)
        (interpreter,) = interpreters(jobs)
        job = jobs.submit(function_command("warmed:waits"), type="FUNCTION")
        assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        os.kill(supervisor(jobs), signal.SIGKILL)
        ended = jobs.wait(job.id, PATIENCE)

        assert (ended.status, ended.reason) == (Status.ERROR, Reason.LOST)
        assert carrying(f"JOBCORE_JOB_ID={job.id}\0") == []
        until(lambda: state(interpreter) == "X", "the end of the interpreter")


def serve(say, database):
    """Be a host with a warm call that runs, and say who takes part."""
    jobs = manager(database)
    warm_up(jobs)
    job = jobs.submit(function_command("warmed:waits"), type="FUNCTION")
    next(jobs.follow(job.id, timeout=PATIENCE))
    say(f"{job.id} {supervisor(jobs)} {interpreters(jobs)[0]}")
    signal.pause()


def test_call_outlives_its_host(database):
    """The next manager stops it; then supervisor and interpreter end."""
    with process(serve, database) as killed:
        job, *pids = killed.hear().split()
        killed.kill()
    with JobManager(database, slots=1) as jobs:
        jobs.stop_job(job)
        assert jobs.wait(job, PATIENCE).reason == Reason.STOPPED
        assert "cleaned up" in lines(jobs, jobs.get_job(job))
    until(lambda: all(state(int(pid)) == "X" for pid in pids), "the end of both")


@pytest.mark.cold_supervisors
@pytest.mark.parametrize("whom", ["os.getpid()", NEWEST_CHILD], ids=["supervisor", "newest child"])
@pytest.mark.parametrize("point", failpoints.WARM)
def test_calls_are_true_when_a_process_is_killed_at_a_step(
    database, monkeypatch, tmp_path, point, whom
):
    """Each call is made once or, if its own process or its supervisor was killed, perhaps not."""
    trap = TRAP.format(point=point, nth=1, whom=whom)
    stub = launcher.STUB.replace(_IMPORT, _IMPORT + trap)
    assert trap in stub
    monkeypatch.setattr(launcher, "STUB", stub)
    made = tmp_path / "made"
    with manager(database) as jobs:
        ended = []
        for number in range(6):
            ended.append(call(jobs, "appends", str(made), str(number)))
            if ended[-1].status != Status.COMPLETE:
                monkeypatch.setattr(launcher, "STUB", stub.replace(trap, ""))
    numbers = made.read_text()

    assert sorted(numbers) == sorted(set(numbers))
    for number, job in enumerate(ended):
        if job.status == Status.COMPLETE:
            assert str(number) in numbers
        else:
            assert job.reason in (Reason.LOST, Reason.SIGNALED)
    assert sum(job.status != Status.COMPLETE for job in ended) <= 2


# --- how many there are, and what is beside them ---


def test_as_many_as_wanted_are_kept(database, monkeypatch):
    """Of three supervisors one has an interpreter, and is kept while it is idle."""
    monkeypatch.setattr(tuning, "IDLE_SUPERVISOR", 0.2)
    with manager(database, slots=3, count=1) as jobs:
        made = [jobs.submit(function_command("warmed:waits"), type="FUNCTION") for _ in range(3)]
        for job in made:
            assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        for job in made:
            jobs.stop_job(job.id)
            jobs.wait(job.id, PATIENCE)
        warm_up(jobs)
        pool = parts(jobs).pool
        until(lambda: len(pool.supervisors) == 1, "the end of the others")

        assert len(interpreters(jobs)) == 1
        assert value(jobs, "is_warm")


def test_other_jobs_of_its_supervisor_do_not_see_it(database):
    """It is no process that they have left, is not ended with them, and is not measured."""
    leaves = ["sh", "-c", "sleep 300 & echo ready; sleep 300"]
    with manager(database) as jobs:
        warm_up(jobs)
        before = interpreters(jobs)
        ended = jobs.wait(jobs.submit(["true"]).id, PATIENCE)
        assert (ended.status, ended.left_processes) == (Status.COMPLETE, 0)
        job = jobs.submit(leaves, grace=0.2)
        assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        until(lambda: jobs.usage(job.id).processes == 3, "all of its processes are measured")
        jobs.stop_job(job.id)
        assert jobs.wait(job.id, PATIENCE).reason == Reason.STOPPED

        assert not any(str(before[0]) in line for line in lines(jobs, job))
        assert interpreters(jobs) == before
        assert value(jobs, "is_warm")


def test_manager_that_is_closed_leaves_no_interpreter(database):
    """It ends with its supervisor."""
    with manager(database, slots=2) as jobs:
        warm_up(jobs)
        pids = interpreters(jobs)
        assert pids

    until(lambda: all(state(pid) == "X" for pid in pids), "their end")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warm": 0}, "warm must be an integer from 1"),
        ({"warm": "2"}, "warm must be an integer from 1"),
        ({"preload": ["json"]}, "preload needs a warm interpreter"),
        ({"warm": True, "preload": "json"}, "preload must be a list"),
        ({"warm": True, "preload": ["a b"]}, "must be named"),
        ({"warm": True, "preload": [3]}, "must be named"),
        ({"warm": True, "preload": ["__main__"]}, "preload names __main__"),
    ],
)
def test_what_cannot_be_warm_is_refused(options, words):
    """At the construction of the executor, not at a call."""
    with pytest.raises(CommandError, match=words):
        FunctionExecutor(sys.executable, **options)
