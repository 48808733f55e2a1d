"""Host programs: small real programs whose process is not as one would like it, or ends at once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jobcore import JobManager
from tests import programs
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.processes import PATIENCE, ROOT, forked

_BEGIN = f"""
import fcntl, os, signal, sys, threading, time
from jobcore import JobManager, JobcoreError, SpawnError
database = sys.argv[1]
LASTS, EXITS_5 = ["sleep", "300"], ["sh", "-c", "exit 5"]
TELLS_ITS_STATE = {programs.TELLS_ITS_STATE!r}
PATIENCE = {PATIENCE}
"""


class Program:
    """A program that has been started; it says on stdout what its test wants to know."""

    def __init__(self, source, *arguments, shell='exec "$@"'):
        self._process = subprocess.Popen(
            ["sh", "-c", shell, "sh", sys.executable, "-c", _BEGIN + source, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def end(self):
        """Return its exit code, what it said, and its complaints."""
        return end_of(self._process)


def end_of(process):
    """Return the exit code of a process, what it said, and its complaints."""
    try:
        said, complaints = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        said, complaints = process.communicate(timeout=PATIENCE)
        raise AssertionError(f"it does not end\n{said}\n{complaints}") from None
    return process.returncode, said.splitlines(), complaints


def run(source, *arguments):
    """Run a program that is to end well, in a fork that is a host; return what it said."""

    def program():
        sys.argv = ["-c", *map(str, arguments)]
        exec(compile(_BEGIN + source, "-c", "exec"), {"__name__": "__main__"})

    process = forked(
        program, dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    code, said, complaints = end_of(process)
    assert (code, complaints) == (0, ""), f"exit {code}\n{said}\n{complaints}"
    return said


# --- signals, children and descriptors -----------------------------------------------

_RUN = """
with JobManager(database, slots=1) as jobs:
    job = jobs.wait(jobs.submit(EXITS_5).id, PATIENCE)
    print(job.status, job.exit_code, job.reason)
    made = []
    thread = threading.Thread(target=lambda: made.append(jobs.submit(EXITS_5)))
    thread.start()
    thread.join()  # the thread has ended before its job has begun, or just then
    print(jobs.wait(made[0].id, PATIENCE).exit_code)
"""

HOSTS = {
    "SIGCHLD is ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "a thread waits for every child": """
def reap():
    while True:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        time.sleep(0.0002)
threading.Thread(target=reap, daemon=True).start()
""",
    "all signals are blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
}


@pytest.mark.parametrize("host", HOSTS)
def test_an_exit_code_is_true_whatever_the_host_does_with_its_children(database, host):
    """Exit code 5 stays 5, also where the host takes or refuses all news of its children."""
    assert run(HOSTS[host] + _RUN, database) == ["ERROR 5 exited", "5"]


def test_a_command_has_a_clean_state_whatever_its_host_has(database):
    """Signals and descriptors of the host are its own; the umask is its submitter's."""
    said = run(
        """
for one in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(one, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2, signal.SIGCHLD])
os.umask(0o777)
os.close(0)
left = os.open("/dev/zero", os.O_RDONLY)
os.set_inheritable(fcntl.fcntl(left, fcntl.F_DUPFD, 50), True)
with JobManager(database, slots=1) as jobs:
    job = jobs.wait(jobs.submit(TELLS_ITS_STATE).id, PATIENCE)
    print(*(line.text for line in jobs.logs(job.id)), sep="\\n")
    stopped = jobs.submit(["sh", "-c", "echo begun; exec sleep 300"])
    next(jobs.follow(stopped.id, timeout=PATIENCE))
    jobs.stop_job(stopped.id)
    print(jobs.wait(stopped.id, PATIENCE).signal)
""",
        database,
    )

    # 7: for its result; 8: of the directory that it lists
    assert said[0] == "descriptors 0 1 2 7 8"
    # Python itself ignores SIGPIPE and SIGXFSZ: that is the program's own.
    assert "SigBlk: 0000000000000000" in said
    assert "SigIgn: 0000000001001000" in said
    assert "Umask: 0777" in said
    assert said[-1] == "15"


@pytest.mark.parametrize("when", ["at its start", "later"])
def test_a_host_without_standard_descriptors_runs_jobs(database, tmp_path, when):
    """What gets the numbers 0, 1 and 2 is neither lost nor written to by anybody else."""
    later = """
    jobs.wait(jobs.submit(EXITS_5).id, PATIENCE)  # no connection to the file is made any more
    for one in (0, 1, 2):
        os.close(one)
"""
    source = f"""
from pathlib import Path
command = ["sh", "-c", "cat; echo out; echo err >&2; sleep 0.2; exit 5"]
with JobManager(database, slots=3) as jobs:
    {later if when == "later" else ""}
    made = [jobs.submit(command) for _ in range(3)]
    ended = [jobs.wait(job.id, PATIENCE) for job in made]
    lines = [line.text for job in made for line in jobs.logs(job.id)]
    Path(sys.argv[2]).write_text(repr(([job.exit_code for job in ended], lines)))
"""
    shell = 'exec "$@" 0<&- 1>&- 2>&-' if when == "at its start" else 'exec "$@"'
    code, _, _ = Program(source, database, tmp_path / "said", shell=shell).end()

    assert code == 0
    assert (tmp_path / "said").read_text() == repr(([5] * 3, ["out", "err"] * 3))


def test_output_beyond_the_file_size_limit_is_kept(database):
    """Under a file size limit of the host a command that says more than that has every line."""
    said = run(
        """
import itertools, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
with JobManager(database, slots=1, on_exit="stop") as jobs:
    command = "yes 0123456789012345678901234567890123456789 | head -n 76726; exit 5"
    job = jobs.wait(jobs.submit(["sh", "-c", command]).id, PATIENCE)
    print(job.status, job.exit_code, job.line_count, job.dropped)
    for text, group in itertools.groupby(line.text for line in jobs.logs(job.id)):
        print(text, len(list(group)))
""",
        database,
    )

    assert said == ["ERROR 5 76726 0", "0123456789" * 4 + " 76726"]


def test_a_database_stays_below_what_a_file_may_hold(database):
    """Under a file size limit of the host its write-ahead log is emptied before it reaches that."""
    said = run(
        """
import random, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
with JobManager(database, slots=0) as jobs:
    for _ in range(60):
        job = jobs.start_job(jobs.create_job("TASK").id)
        jobs.append_log(job.id, random.randbytes(30_000))
        jobs.finish_job(job.id)
        jobs.delete_job(job.id)
    print(len(jobs.list_jobs()))
""",
        database,
    )

    assert said == ["0"]


def test_an_environment_for_the_command_is_for_the_command_alone(running_jobs):
    """What would break an interpreter, or any program, does not reach the supervisor."""
    hostile = dict.fromkeys(
        ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PATH"), "/nowhere"
    )
    command = ["/bin/sh", "-c", "echo $PYTHONHOME $PYTHONPATH $LD_LIBRARY_PATH; exit 5"]
    job = running_jobs.wait(running_jobs.submit(command, env=hostile).id, PATIENCE)

    said = [line.text for line in running_jobs.logs(job.id) if "/nowhere /nowhere" in line.text]
    assert (job.exit_code, said) == (5, ["/nowhere /nowhere /nowhere"])


def test_a_job_of_a_job_knows_its_own_ids(running_jobs, database, monkeypatch):
    """A host that is a job itself hands its own ids, and the mark of its run, on to nobody."""
    for name in ("JOB_ID", "WORKSPACE_ID", "PIPELINE_ID", "RUN", "DB", "ATTEMPT"):
        monkeypatch.setenv(f"JOBCORE_{name}", "of the host")
    ids = '"$JOBCORE_JOB_ID $JOBCORE_WORKSPACE_ID ${JOBCORE_PIPELINE_ID-none}"'
    tells = f'echo {ids}; echo "$JOBCORE_RUN"; echo "$JOBCORE_ATTEMPT $JOBCORE_DB"'
    pipeline = running_jobs.create_pipeline("nightly", ["sh", "-c", tells])
    alone = running_jobs.submit(["sh", "-c", tells])
    inside = running_jobs.create_job(pipeline_id=pipeline.id)

    for job, its in ((alone, "none"), (inside, pipeline.id)):
        running_jobs.wait(job.id, PATIENCE)
        ids, run, others = (line.text for line in running_jobs.logs(job.id))
        assert others == f"1 {database}"
        assert ids == f"{job.id} {job.workspace_id} {its}"
        assert run != "of the host"


def test_error_without_interpreter_names_the_remedy(database):
    """An embedded Python has no `sys.executable`: the error says what to do, and that works."""
    said = run(
        """
python, sys.executable = sys.executable, ""
with JobManager(database, slots=0) as jobs:
    job = jobs.submit(EXITS_5)
try:
    JobManager(database, slots=1)
except SpawnError as error:
    print("python=" in str(error))
with JobManager(database, slots=1, python=python) as jobs:
    print(jobs.wait(job.id, PATIENCE).exit_code)
""",
        database,
    )

    assert said == ["True", "5"]


def test_an_interpreter_may_be_named_by_a_relative_path(database, tmp_path):
    """Supervisors are started elsewhere: `./name` is as of the call, and a bare one is on PATH."""
    (tmp_path / "bin").mkdir()
    os.symlink(sys.executable, tmp_path / "bin" / "python-here")

    said = run(
        """
def run_with(python):
    with JobManager(database, slots=1, python=python) as jobs:
        os.chdir("/")
        print(jobs.wait(jobs.submit(EXITS_5).id, PATIENCE).exit_code)

folder = sys.argv[2]
os.chdir(folder)
run_with("./bin/python-here")
os.chdir(f"{folder}/bin")
run_with("../bin/python-here")
os.environ["PATH"] += f":{folder}/bin"
run_with("python-here")
""",
        database,
        tmp_path,
    )

    assert said == ["5", "5", "5"]


@in_rounds(smoke=3, full=56)
def test_a_host_with_few_descriptors_gets_a_typed_error_or_its_job(database, rounds):
    """With any limit a call works or raises a JobcoreError, and all is well once it is raised."""
    limits = sorted(rounds.chance().sample(range(5, 61), min(rounds.total, 56)))
    said = run(
        """
import resource
usual = resource.getrlimit(resource.RLIMIT_NOFILE)
with JobManager(database, slots=1) as jobs:
    jobs.wait(jobs.submit(EXITS_5).id, PATIENCE)  # all modules are loaded now
for limit in map(int, sys.argv[2].split()):
    jobs, job = None, None
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, usual[1]))
    try:
        jobs = JobManager(database, slots=1)
        job = jobs.submit(EXITS_5)
        jobs.wait(job.id, 0.3)
    except JobcoreError:
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    jobs = jobs or JobManager(database, slots=1)
    with jobs:
        job = job or jobs.submit(EXITS_5)
        print(limit, jobs.wait(job.id, PATIENCE).exit_code)
""",
        database,
        " ".join(map(str, limits)),
    )
    rounds.did(len(limits))

    # A command that could not be begun for want of a descriptor has no exit code.
    allowed = {f"{limit} {code}" for limit in limits for code in (5, None)}
    assert len(said) == len(limits)
    assert set(said) <= allowed
    with JobManager(database, slots=0) as jobs:
        assert not jobs.count_jobs()["RUNNING"]
        check(jobs)


# --- the end of the program -------------------------------------------------------------

_ENDS = {
    "returns": "pass",
    "sys.exit": "sys.exit(3)",
    "os._exit": "os._exit(4)",
    "raises": "raise LookupError('its own')",
}
CODES = {"returns": 0, "sys.exit": 3, "os._exit": 4, "raises": 1}

_END = """
jobs = JobManager(database, slots=2, on_exit=sys.argv[2])
def say(job):
    os.write(1, f"{job.id}\\n".encode())
def submit():
    for _ in range(8):
        try:
            job = jobs.submit(EXITS_5)
        except JobcoreError:
            return  # closed
        say(job)
def end():
    lasting = jobs.submit(["sh", "-c", "echo begun; exec sleep 300"], grace=0)
    say(lasting)
    next(jobs.follow(lasting.id, timeout=PATIENCE))
    threading.Thread(target=submit, daemon=True).start()
    jobs.wait(jobs.submit(EXITS_5).id, PATIENCE)
    END
if sys.argv[3] == "closed":
    with jobs:
        end()
else:
    end()
"""


_WAYS = [(end, on_exit) for on_exit in ("detach", "stop") for end in _ENDS]


@in_rounds(smoke=2, full=8 * len(_WAYS), long=True)
def test_however_a_program_ends_its_jobs_are_true(tmp_path, rounds):
    """Its end takes no time and says nothing; what was submitted is there, and is as it says."""
    ways = rounds.chance().sample(_WAYS, len(_WAYS))
    for _ in rounds:
        end, on_exit = ways[rounds.number % len(ways)]
        database = tmp_path / f"{rounds.number}.db"
        kept = "closed" if on_exit == "stop" else "left open"
        code, said, complaints = Program(
            _END.replace("END", _ENDS[end]), database, on_exit, kept
        ).end()

        told = f"{end}, {on_exit}\n{complaints}"
        assert code == CODES[end], told
        assert complaints.count("Traceback") == (end == "raises"), told
        assert (complaints == "") == (end != "raises"), told
        with JobManager(database, slots=2) as jobs:
            lasting = jobs.get_job(said[0])
            if on_exit == "stop" and end != "os._exit":
                assert (lasting.status, lasting.reason) == ("STOPPED", "stopped"), told
            else:
                assert lasting.status == "RUNNING", told
                jobs.stop_job(lasting.id)
                jobs.wait(lasting.id, PATIENCE)  # a drain leaves the jobs of other hosts out
            jobs.drain(PATIENCE)  # what was queued is run, and nothing stays claimed
            ended = [jobs.get_job(job_id) for job_id in said[1:]]
            left = {job.reason for job in ended if job.exit_code != 5}
            told += "\n".join(str(jobs.history(job.id)) for job in ended if job.exit_code != 5)
            # Only an end in the middle of a step may come between the claim of a job and its start,
            # and a short job may be among those that are stopped.
            stops = {"stopped"} if on_exit == "stop" else set()
            assert left <= ({"never_started"} if end == "os._exit" else stops), told
            check(jobs)


CLOSES_ALL = """
import logging, os, sys
from jobcore import JobManager, StoreError

logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="LOG %(message)s")
with JobManager(sys.argv[1], slots=1) as jobs:
    job = jobs.wait(jobs.submit(["true"]).id, 60)
    os.closerange(3, 4096)
    for call in (
        lambda: jobs.submit(["true"]),
        lambda: jobs.list_jobs(),
        lambda: jobs.wait(job.id),
        lambda: jobs.start_job(job.id),
    ):
        try:
            call()
        except StoreError as error:
            print(error)
"""


REUSES_ALL = """
import os, sys
from jobcore import JobManager, StoreError

jobs = JobManager(sys.argv[1], slots=0)
jobs.create_job("TASK")
jobs.list_jobs()
os.closerange(3, 4096)
other = os.path.dirname(sys.argv[1]) + "/other"
files = [os.open(other + str(number), os.O_RDWR | os.O_CREAT) for number in range(12)]
for call in (lambda: jobs.create_job("TASK"), jobs.list_jobs, jobs.close):
    try:
        call()
    except StoreError as error:
        print(error)
assert [os.fstat(file).st_size for file in files] == [0] * 12
"""


def test_host_that_reuses_all_descriptors_keeps_its_files(database):
    """Files of the host that have reused SQLite's descriptors stay open, and nothing is written."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REUSES_ALL, database],
        stdout=subprocess.PIPE, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip

    assert done.returncode == 0
    assert done.stdout.count("other code of this process closed jobcore's file descriptors") == 2


def test_host_that_closes_all_descriptors_gets_errors(database):
    """Daemons close all descriptors: each later call raises at once, and no thread spins."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLOSES_ALL, database],
        stdout=subprocess.PIPE, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if not line.startswith("LOG")]
    logged = [line for line in done.stdout.splitlines() if line.startswith("LOG")]

    assert done.returncode == 0
    assert [line.partition(": ")[2][:61] for line in said] == [
        "other code of this process closed jobcore's file descriptors,"
    ] * 4
    assert len(logged) < 20
