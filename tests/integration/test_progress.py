"""Progress of real commands: read live, coalesced, and never in the way of anything."""

from __future__ import annotations

import os
import resource
import signal
import time

import pytest

from jobcore import JobManager, Status
from jobcore.supervisor import frames, job_directory
from jobcore.supervisor.capture import REPORT_EVERY
from tests import programs
from tests.integration.supervision_harness import processes_of
from tests.processes import Child, carrying, in_child, run_python, until

WAIT = 'while [ ! -e "$GO" ]; do sleep 0.01; done'
SAYS_3_OF_10 = f'echo "3/10 loading" >&"$JOBCORE_PROGRESS_FD"; {WAIT}'


@pytest.fixture
def go(tmp_path):
    """Return the file that programs wait for."""
    return tmp_path / "go"


def reports(run):
    """Return the reports in the spool, in their order."""
    data = job_directory.read_spool(run.directory, 0, 1 << 20)  # far from the next file
    return [
        data[frame.start : frame.end].decode()
        for frame in frames.scan(data)
        if frame.stream == frames.PROGRESS
    ]


def said(job):
    """Return done, total and message of a job."""
    return job.progress and (job.progress.done, job.progress.total, job.progress.message)


# --- seen by hosts ---


def test_live_from_another_process(database, go):
    """While a job runs, every process with the database open sees how far it is."""

    def look(how):
        with JobManager(database, slots=0) as other:
            (job,) = until(
                lambda: [job for job in how(other) if job.progress], "progress of a running job"
            )
            return str(job.status), said(job)

    with JobManager(database, slots=1, on_exit="stop") as jobs:
        job = jobs.submit(["sh", "-c", SAYS_3_OF_10 + "; echo 10/10 >&8"], env={"GO": str(go)})
        read = in_child(look, lambda other: [other.get_job(job.id)])
        listed = in_child(look, lambda other: other.list_jobs())
        go.touch()
        ended = jobs.wait(job.id)

    assert read == listed == ("RUNNING", (3.0, 10.0, "loading"))
    assert (ended.status, said(ended), ended.line_count) == (
        Status.COMPLETE, (10.0, 10.0, None), 0,
    )  # fmt: skip
    assert ended.start_time <= ended.progress.at <= ended.end_time


def test_progress_continues_after_the_host_is_killed(database, go):
    """Reports after the death of the host are there for the next one."""
    script = f'echo "1/2" >&8; {WAIT}; echo "2/2 without a host" >&8; echo line; touch "$GO.done"'

    def run_and_sleep():
        jobs = JobManager(database, slots=1)
        jobs.submit(["sh", "-c", script], env={"GO": str(go)})
        time.sleep(300)

    first = Child(run_and_sleep)
    with JobManager(database, slots=0) as jobs:
        job = until(lambda: [job for job in jobs.list_jobs() if job.progress])[0]
        first.kill()
        go.touch()
        until(lambda: os.path.exists(f"{go}.done"))
        ended = jobs.wait(job.id)

        assert said(job) == (1.0, 2.0, None)
        assert (ended.exit_code, said(ended)) == (0, (2.0, 2.0, "without a host"))
        assert [line.text for line in jobs.logs(job.id)] == ["line"]


def test_a_killed_supervisor_takes_no_report_back(database, go):
    """A lost job still shows its last report."""
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(["sh", "-c", 'echo "$PPID"; ' + SAYS_3_OF_10], env={"GO": str(go)})
        until(lambda: jobs.get_job(job.id).progress)
        (line,) = until(lambda: list(jobs.logs(job.id)))
        os.kill(int(line.text), signal.SIGKILL)
        ended = jobs.wait(job.id)

    assert (ended.status, str(ended.reason)) == (Status.ERROR, "lost")
    assert said(ended) == (3.0, 10.0, "loading")


# --- ways to report ---


STEPS = [
    ("echo 1/9 >&8", "1/9"),
    ("echo jobcore:progress 2/9 by stderr >&2", "2/9 by stderr"),
    ("echo a; echo 3/9 >&8; echo b", "3/9"),
    ("echo jobcore:progress 4/9; echo c", "4/9"),
    ("printf 5/9 >&8; echo >&8", "5/9"),
]


@pytest.mark.parametrize("separate", [False, True])
def test_both_ways_are_one_progress(host, go, separate):
    """Through descriptor or output, what comes last counts, and the lines around stay dense."""
    script = "".join(
        f"{words}; while [ ! -e ${{GO}}{step} ]; do sleep 0.01; done; "
        for step, (words, _) in enumerate(STEPS)
    )
    run = host.start(
        ["sh", "-c", script + "printf 'jobcore:progress 6/9 at last'"],
        env={"GO": str(go)},
        separate_streams=separate,
    )
    for step, (_, expected) in enumerate(STEPS):
        until(lambda expected=expected: reports(run)[-1:] == [expected], expected)
        go.with_name(f"go{step}").touch()
    host.finish(run)

    assert reports(run) == [*(report for _, report in STEPS), "6/9 at last"]
    assert run.output() == b"a\nb\nc\n"
    assert run.exit.next_sequence == 3


def test_a_child_of_the_command_reports(host):
    """A child that inherits the descriptor can report, until it exits."""
    source = """
import os, subprocess, sys
fd = int(os.environ["JOBCORE_PROGRESS_FD"])
subprocess.run([sys.executable, "-I", "-S", "-c", "import os; os.write(8, b'1/3 child\\\\n')"],
               pass_fds=[fd], check=True)
if os.fork() == 0:
    os.setsid()
    os.write(fd, b"2/3 grandchild\\n")
    os._exit(0)
os.wait()
print("jobcore:progress 2.5/3 closed", flush=True)
subprocess.run(["sh", "-c", "echo jobcore:progress 3/3 from any depth"], check=True)
"""
    run = host.run(programs.python(source))

    assert run.exit.wait_status == 0
    assert reports(run)[-1] == "3/3 from any depth"
    assert run.output() == b""


def test_reports_within_the_linger_count(host):
    """What a process says that outlives the command is still the job's."""
    run = host.run(["sh", "-c", "(sleep 0.3; echo 2/2 late >&8) & echo 1/2 >&8"], linger=30.0)

    assert reports(run)[-1] == "2/2 late"


def test_reports_of_a_stopped_command_count(host):
    """A command can report progress after a stop request."""
    script = (
        "trap 'echo 7/9 interrupted >&8; exit 1' TERM; echo ready; while :; do sleep 0.01; done"
    )
    run = host.start(["sh", "-c", script])
    run.wait_for_output()
    run.stop(30)
    exit_ = host.finish(run)

    assert (exit_.reason, reports(run)) == ("stopped", ["7/9 interrupted"])


# --- never in the way ---


@pytest.mark.parametrize(
    "line", ["%d/100000 counted", "jobcore:progress %d/100000 counted"], ids=["fd", "output"]
)
def test_a_hundred_thousand_reports_are_few_frames(host, line):
    """However many reports come, a few a second are written, and the last one."""
    where = 8 if not line.startswith("jobcore") else 1
    source = f"""
import os
for done in range(1, 100_001):
    os.write({where}, b"{line}\\n" % done)
"""
    run = host.run(programs.python(source))
    found = reports(run)

    assert run.exit.wait_status == 0
    assert found[-1] == "100000/100000 counted"
    assert len(found) <= run.exit.duration_ns / 1e9 / REPORT_EVERY + 2
    assert (run.output(), run.exit.next_sequence) == (b"", 0)
    times = [frame.time_ns for frame, _ in run.frames]
    assert [run.exit.spawned_ns, *times, run.exit.ended_ns] == sorted(
        [run.exit.spawned_ns, *times, run.exit.ended_ns]
    )
    done = [int(report.partition("/")[0]) for report in found]
    assert done == sorted(set(done))


def test_a_closed_descriptor_is_nothing_special(host):
    """A command that closes the descriptor, or uses its number for itself, ends as it would."""
    script = "echo 1/2 >&8; exec 8>&-; echo a; exec 8>/dev/null; echo 2/2 >&8; echo b; exit 6"
    run = host.run(["sh", "-c", script])

    assert run.exit.wait_status == 6 << 8
    assert run.output() == b"a\nb\n"
    assert reports(run) == ["1/2"]
    assert run.supervisor.ready


def test_a_descendant_that_keeps_the_descriptor_delays_nothing(host):
    """The job ends with the command's exit, not at EOF; leftovers are killed after the linger."""
    run = host.run(["sh", "-c", "sleep 300 >&- 2>&- & echo 1/1 >&8; exit 5"], linger=0.3)

    assert run.exit.wait_status == 5 << 8
    assert reports(run) == ["1/1"]
    assert processes_of(run.token) == []


def test_unrelated_process_with_the_descriptor_does_not_delay_the_end(host, go):
    """An outside process may hold the pipe: the job ends, and no other job gets that pipe."""
    run = host.start(["sh", "-c", f"echo ready; {WAIT}; exit 5"], env={"GO": str(go)})
    command = host.wait_for_start(run)
    run.wait_for_output()
    pipe = os.open(f"/proc/{command}/fd/8", os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(pipe, b"1/2 by a stranger\n")
        go.touch()
        host.finish(run)
        second = host.run(programs.EXIT_0, run.supervisor)
        with pytest.raises(BrokenPipeError):
            os.write(pipe, b"2/2 for another job\n")
    finally:
        os.close(pipe)

    assert run.exit.wait_status == 5 << 8
    assert reports(run) == ["1/2 by a stranger"]
    assert reports(second) == []


def test_daemon_with_the_descriptor_is_ended_like_any_leftover(database):
    """A daemon that has the command's descriptor is killed with the other leftovers."""
    source = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        os.write(8, b"1/2 daemon\\n")
        time.sleep(300)
    os._exit(0)
os.wait()
"""
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        job = jobs.wait(jobs.submit(programs.python(source)).id, 30)

        assert (job.exit_code, said(job)) == (0, (1.0, 2.0, "daemon"))
        assert not carrying(str(job.id))


def test_a_full_disk_does_not_hold_reports(host, go):
    """While output is held for lack of space reports are read on, and the last one is kept."""
    script = (
        f"echo ready; {WAIT}; echo output; i=0;"
        "while [ $i -lt 20000 ]; do i=$((i+1)); echo $i/20000 >&8; done; touch $GO.done"
    )
    run = host.start(["sh", "-c", script], env={"GO": str(go)})
    run.wait_for_output()
    size = job_directory.spool_end(run.directory)
    resource.prlimit(run.supervisor.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    go.touch()
    until(lambda: os.path.exists(f"{go}.done"), "the command to have reported all")
    assert run.exit is None
    assert job_directory.spool_end(run.directory) == size

    limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(run.supervisor.pid, resource.RLIMIT_FSIZE, limit)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("exited", 0)
    assert run.output() == b"ready\noutput\n"
    assert reports(run)[-1] == "20000/20000"


def test_malformed_progress_report_is_logged_once(host):
    """An invalid report is dropped, and the log says so once."""
    run = host.run(
        ["sh", "-c", "for i in 1 2 3; do echo half >&8; done; echo 1/2 >&8; echo half >&8"]
    )

    assert reports(run) == ["1/2"]
    assert run.system == "a malformed progress report is dropped: 'half'\n"


def test_beyond_the_output_limit(host):
    """Reports in the output count for nothing, and come through when its limit is reached."""
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo jobcore:progress $i/9; echo 0123456789; done"
    run = host.run(["sh", "-c", script], output_limit=25)

    assert run.output() == b"0123456789\n" * 2
    assert reports(run)[-1] == "9/9"
    assert run.exit.dropped == 7


@pytest.mark.parametrize("where", ["8", "1"])
def test_redacted_values_reach_no_file(host, where):
    """A secret in a report is masked before it is on disk, also where two reads cut it."""
    prefix = "jobcore:progress " if where == "1" else ""
    script = f"printf '{prefix}1/2 a cd' >&{where}; sleep 0.05; echo 'ef g' >&{where}; echo cdef"
    run = host.run(["sh", "-c", script], redact=[b"cdef"])

    assert reports(run) == ["1/2 a *** g"]
    assert run.output() == b"***\n"
    assert b"cdef" not in job_directory.read_spool(run.directory, 0, 1 << 20)


# --- the descriptor ---


def test_progress_descriptor_is_a_separate_pipe(host):
    """It blocks like any other pipe, is another one than stdout, and is one more in each job."""
    source = """
import os, fcntl, stat
assert os.environ["JOBCORE_PROGRESS_FD"] == "8"
there = os.fstat(8)
assert stat.S_ISFIFO(there.st_mode) and there.st_ino != os.fstat(1).st_ino
assert fcntl.fcntl(8, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_NONBLOCK) == os.O_WRONLY
print(there.st_ino)
"""
    supervisor = host.supervisor()
    inodes = {host.run(programs.python(source), supervisor).output() for _ in range(3)}

    assert len(inodes) == 3
    assert b"" not in inodes


TRIES_EVERY_NUMBER = """
import os, select, sys
from jobcore.supervisor import progress, spawn

def read(descriptor):
    data = b""
    while True:
        select.select([descriptor], [], [])
        chunk = os.read(descriptor, 4096)
        if not chunk:
            os.close(descriptor)
            return data
        data += chunk

def run(argv, **how):
    command = spawn.Program(
        argv, {b"PATH": os.environb[b"PATH"]}, b"/", how.get("stdin"), 0o22,
        separate_streams=how.get("separate", False))
    child = spawn.spawn(command)
    outputs = [read(descriptor) for descriptor, _ in child.outputs]
    reported = read(child.reports)
    select.select([child.report], [], [])
    failure = spawn.read_report(child.report)
    os.close(child.report)
    _, status = os.waitpid(child.pid, 0)
    return outputs, reported, failure and (failure.stage, failure.errno), status

if sys.argv[1] == "listed":
    spawn._close_range = lambda *_: -1
script = (b'echo "$(echo /proc/self/fd/*)"; cat; echo err >&2; echo 1/2 >&"$JOBCORE_PROGRESS_FD"')
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 50)
os.close(null)
for first in range(3, 12):
    # Only from here on numbers are free, so each end of a pipe has the number 8 in turn.
    for number in range(3, first):
        os.dup2(50, number)
    before = sorted(os.listdir("/proc/self/fd"))
    for separate in (False, True):
        for stdin in (None, ("data", b"in\\n")):
            outputs, reported, failure, status = run(
                [b"sh", b"-c", script], separate=separate, stdin=stdin)
            words, *lines = b"".join(outputs).split(b"\\n")
            assert words.split() == [b"/proc/self/fd/%d" % n for n in (0, 1, 2, 3, 8)], words
            assert lines == ([b"in"] if stdin else []) + [b"err", b""], lines
            assert (reported, failure, status) == (b"1/2\\n", None, 0), (reported, failure, status)
    failed = run([b"/no/such/program"])
    assert failed == ([b""], b"", ("exec", 2), 127 << 8), failed
    assert sorted(os.listdir("/proc/self/fd")) == before
    print(first)
"""


@pytest.mark.parametrize("how", ["range", "listed"])
def test_progress_works_for_any_descriptor_number_in_the_supervisor(how):
    """Which numbers are free in the supervisor makes no difference to the command."""
    assert run_python(TRIES_EVERY_NUMBER, how).split() == [str(first) for first in range(3, 12)]
