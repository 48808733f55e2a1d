"""Streams: who writes them, holds them, closes and opens them again, and who reads meanwhile."""

from __future__ import annotations

import os
import random
import sys
import threading

import pytest

from jobcore import Command, JobManager, Reason, Status
from jobcore.supervisor import frames, job_directory, spawn
from tests.mounts import in_own_mounts, mount_tmpfs
from tests.processes import PATIENCE, Child, join, open_gate, until
from tests.programs import python

#: Writes 10,000 lines, one to stdout, one to stderr, with nothing in between to order them.
ALTERNATES = python("""
import os
for number in range(10_000):
    os.write(1 + number % 2, b"%d\\n" % number)
""")

#: Makes one descriptor non-blocking, as node does with those it writes to, and says which are then.
SETS_NONBLOCK = python("""
import os, subprocess, sys
sets = "import os, sys; os.set_blocking(int(sys.argv[1]), False)"
subprocess.run([sys.executable, "-c", sets, sys.argv[1]], pass_fds=[8], check=True)
print([number for number in (0, 1, 2, 8) if not os.get_blocking(number)], flush=True)
""")

#: Has a child make its stderr non-blocking and live on, then writes more than a pipe holds.
WRITES_BESIDE_ONE = python("""
import os, subprocess, sys
lives = "import os; os.set_blocking(2, False); print(flush=True); os.read(0, 1)"
child = subprocess.Popen(
    [sys.executable, "-c", lives], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)
child.stdout.readline()
for _ in range(20):
    os.write(1, b"x" * 999_999 + b"\\n")
child.communicate()
""")

#: Says where its streams lead, closes them, and ends when it is told to.
CLOSES_BOTH = [
    "sh",
    "-c",
    'readlink /proc/$$/fd/1; exec >&- 2>&-; read -r _ < "$GATE"; exit 7',
]

#: Says much more after the SIGTERM than before.
TALKS_AFTER_TERM = python("""
import os, signal
def talk(*_):
    for number in range(1, 1001):
        os.write(1, b"%d\\n" % number)
    os.write(2, b"tail")
    os._exit(3)
signal.signal(signal.SIGTERM, talk)
os.write(1, b"ready\\n")
while True:
    signal.pause()
""")

#: Leaves behind somebody in another session, who has said what has no newline and stays.
LEAVES_A_HOLDER = [
    "sh",
    "-c",
    """
    setsid sh -c 'echo held; printf tail; echo > "$0"; exec sleep 300' "$GATE" &
    read -r _ < "$GATE"; echo mine; exit 5
    """,
]


def output(jobs, job_id):
    """Return what the command itself said."""
    return b"".join(line.raw for line in jobs.logs(job_id) if line.stream != "system")


def submit(jobs, argv, **options):
    """Submit a command and return its id."""
    return jobs.submit(Command(argv, **options)).id


def test_both_streams_come_in_the_order_of_their_writes(running_jobs):
    """10,000 lines that alternate between stdout and stderr keep the order of write(2)."""
    job = running_jobs.wait(submit(running_jobs, ALTERNATES), PATIENCE)

    assert job.status is Status.COMPLETE
    lines = [(line.sequence, line.stream, line.raw) for line in running_jobs.logs(job.id)]
    assert lines == [(number, "output", b"%d\n" % number) for number in range(10_000)]


def _use_without_proc(database):
    """Run both in a host that has no /proc; return what they wrote, and what they left."""
    mount_tmpfs("/proc", "64k")
    found = []
    with JobManager(database, slots=1) as jobs:
        for argv in (ALTERNATES, [*SETS_NONBLOCK, "2"]):
            job_id = submit(jobs, argv)
            assert jobs.wait(job_id, PATIENCE).status is Status.COMPLETE
            found.append([line.raw for line in jobs.logs(job_id)])
    left = [name for _, _, names in os.walk(f"{database}.jobs") for name in names]
    return found, [name for name in left if name.startswith("output-")]


def test_without_proc_the_streams_are_a_fifo(database):
    """A FIFO that is opened twice does the same, and its name is gone once it is open."""
    (alternating, flags), left = in_own_mounts(_use_without_proc, database)

    assert alternating == [b"%d\n" % number for number in range(10_000)]
    assert flags == [b"[2]\n"]
    assert left == []


def test_command_starts_without_proc_and_directory(tmp_path):
    """Then stdout and stderr share one open file description, as with `2>&1` in a shell."""

    def host():
        mount_tmpfs("/proc", "64k")
        (tmp_path / "gone").mkdir()
        directory = os.open(tmp_path / "gone", os.O_RDONLY)
        os.rmdir(tmp_path / "gone")
        command = spawn.Program(
            [os.fsencode(word) for word in [*SETS_NONBLOCK, "2"]],
            {b"PATH": os.environb[b"PATH"]}, b"/", None, 0o022, separate_streams=False,
        )  # fmt: skip
        child = spawn.spawn(command, directory=directory)
        ((reader, stream),) = child.outputs
        os.set_blocking(reader, True)
        assert stream == frames.OUTPUT
        with open(reader, "rb") as output:
            return output.read()

    assert in_own_mounts(host) == b"[1, 2]\n"


@pytest.mark.parametrize("separate", [False, True], ids=["merged", "separate"])
@pytest.mark.parametrize("descriptor", [0, 1, 2, 8])
def test_a_stream_made_non_blocking_leaves_the_others_alone(running_jobs, separate, descriptor):
    """O_NONBLOCK on stdin, stdout, stderr or the descriptor for progress stays on that one."""
    argv = [*SETS_NONBLOCK, str(descriptor)]
    job = running_jobs.wait(submit(running_jobs, argv, separate_streams=separate), PATIENCE)

    assert job.status is Status.COMPLETE
    assert output(running_jobs, job.id) == b"[%d]\n" % descriptor


def test_a_neighbour_that_does_not_block_costs_no_output(running_jobs):
    """20 MB written to stdout arrive whole beside a process whose stderr is non-blocking."""
    job = running_jobs.wait(submit(running_jobs, WRITES_BESIDE_ONE), PATIENCE)

    assert (job.status, job.exit_code) == (Status.COMPLETE, 0)
    assert output(running_jobs, job.id) == (b"x" * 999_999 + b"\n") * 20


@pytest.mark.parametrize("separate", [False, True], ids=["merged", "separate"])
def test_a_stream_that_is_opened_again_loses_nothing(running_jobs, separate):
    """`tee /dev/stderr` and `> /dev/stdout` neither truncate the log nor fail."""
    script = """
    set -e
    echo one
    echo two | tee /dev/stderr
    echo three > /dev/stdout
    echo four > /dev/stderr
    echo five > /proc/self/fd/1
    echo six >> /dev/stdout
    seq 3 | tee /dev/stderr
    echo seven >&2
    """
    job_id = submit(running_jobs, ["sh", "-c", script], separate_streams=separate)
    job = running_jobs.wait(job_id, PATIENCE)

    assert (job.status, job.exit_code) == (Status.COMPLETE, 0)
    log = list(running_jobs.logs(job_id))
    if separate:
        of = {name: [x.text for x in log if x.stream == name] for name in ("stdout", "stderr")}
        assert of["stdout"] == ["one", "two", "three", "five", "six", "1", "2", "3"]
        assert of["stderr"] == ["two", "four", "1", "2", "3", "seven"]
    else:
        said = [line.text for line in log]
        assert said[:7] == ["one", "two", "two", "three", "four", "five", "six"]
        assert sorted(said[7:13]) == ["1", "1", "2", "2", "3", "3"]
        assert said[13:] == ["seven"]


def test_a_command_that_closes_its_streams_is_running(running_jobs, database, gate):
    """A command that closes its output stays RUNNING until it exits, and has its exit code."""
    job_id = submit(running_jobs, CLOSES_BOTH, env={"GATE": gate})
    pipe = next(running_jobs.follow(job_id, timeout=PATIENCE)).text
    with open(os.path.join(f"{database}.jobs", job_id.hex, job_directory.RUN), "rb") as file:
        supervisor = job_directory.decode_record(file.read())["supervisor"]
    until(lambda: not _holds(supervisor, pipe), "the end of the pipe")
    before = running_jobs.get_job(job_id)
    open_gate(gate)
    after = running_jobs.wait(job_id, PATIENCE)

    assert (before.status, before.exit_code, before.line_count) == (Status.RUNNING, None, 1)
    assert (after.status, after.exit_code, after.reason) == (Status.ERROR, 7, Reason.EXITED)
    assert output(running_jobs, job_id) == f"{pipe}\n".encode()


def test_output_after_sigterm_is_in_the_log(running_jobs):
    """The log has everything that a stopped command writes until it exits."""
    job_id = submit(running_jobs, TALKS_AFTER_TERM, grace=300)
    assert next(running_jobs.follow(job_id, timeout=PATIENCE)).text == "ready"

    running_jobs.stop_job(job_id)
    job = running_jobs.wait(job_id, PATIENCE)

    assert (job.status, job.exit_code, job.reason) == (Status.STOPPED, 3, Reason.STOPPED)
    expected = [b"ready\n", *(b"%d\n" % number for number in range(1, 1001)), b"tail"]
    assert output(running_jobs, job_id) == b"".join(expected)
    assert job.line_count == len(expected) + 1  # and who had it stopped


def test_python_hands_over_each_line_at_once(running_jobs, gate, monkeypatch):
    """What a Python command prints is there while it runs; as blocks, if it is to, at its end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "of the host")
    script = 'import os; print("said"); open(os.environ["GATE"]).close(); print("more")'
    for blocks in ({}, {"env": {"PYTHONUNBUFFERED": ""}}, {"unbuffered": False}):
        env = {"GATE": gate, **blocks.get("env", {})}
        options = {**blocks, "env": env}
        job_id = submit(running_jobs, [sys.executable, "-S", "-c", script], **options)
        if not blocks:
            assert next(running_jobs.follow(job_id, timeout=PATIENCE)).text == "said"
        open_gate(gate)  # which lets it go on

        assert running_jobs.wait(job_id, PATIENCE).status is Status.COMPLETE
        assert output(running_jobs, job_id) == b"said\nmore\n"


#: Four processes print JSON, each line as a whole where Python buffers.
PRINTS_FROM_PROCESSES = """
import json, multiprocessing
def work(worker):
    for n in range(300): print(json.dumps({"worker": worker, "n": n}), flush=True)
context = multiprocessing.get_context("fork")
processes = [context.Process(target=work, args=(one,)) for one in range(4)]
for process in processes: process.start()
for process in processes: process.join()
"""


def test_flushed_lines_of_several_processes_do_not_mix(running_jobs):
    """With `unbuffered=False` each flush is one write, so all lines of a pool keep their fields."""
    argv = [sys.executable, "-c", PRINTS_FROM_PROCESSES]
    job = running_jobs.wait(submit(running_jobs, argv, unbuffered=False), PATIENCE)
    said = [line.fields for line in running_jobs.logs(job.id)]

    assert job.status is Status.COMPLETE
    assert len(said) == 1200
    assert None not in said


def test_process_holding_a_stream_does_not_delay_the_end(running_jobs, gate):
    """A grandchild with the pipe in its hands is waited for no longer than the linger."""
    job_id = submit(running_jobs, LEAVES_A_HOLDER, env={"GATE": gate}, linger=0.3)
    job = running_jobs.wait(job_id, PATIENCE)

    assert (job.status, job.exit_code, job.reason) == (Status.ERROR, 5, Reason.EXITED)
    assert output(running_jobs, job_id) == b"held\ntailmine\n"


def test_readers_from_anywhere_see_the_same_numbers(running_jobs, database):
    """Followers and readers of two processes, from any line on, see each line in its place."""
    script = "i=0; while [ $i -lt 60 ]; do seq $((i * 300)) $((i * 300 + 299)); i=$((i + 1)); done"
    total = 60 * 300
    job_id = submit(running_jobs, ["sh", "-c", script])
    elsewhere = Child(_follow_and_read, database, job_id, total)
    wrong = []

    def follow(begin):
        wrong.extend(
            _wrong(
                running_jobs.follow(job_id, begin, timeout=PATIENCE, unfinished=False), begin, total
            )
        )

    def read(number):
        wrong.extend(_read_about(running_jobs, job_id, random.Random(number)))

    threads = [threading.Thread(target=follow, args=(n,)) for n in (0, 1, 137, total - 1)]
    threads += [threading.Thread(target=read, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    join(*threads)

    assert wrong == []
    assert elsewhere.result() == []
    assert running_jobs.get_job(job_id).line_count == total


def _holds(pid, pipe):
    """Tell whether a process has an end of that pipe."""
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except FileNotFoundError:
            pass  # closed in between
    return pipe in found


def _wrong(lines, begin, end=None):
    """Return what is wrong with lines from `begin` on, of which each says its number."""
    number = begin
    wrong = []
    for line in lines:
        if (line.sequence, line.raw) != (number, b"%d\n" % number):
            wrong.append((number, line))
        number += 1
    if end is not None and number != end:
        wrong.append(f"it ends at {number}")
    return wrong


def _read_about(jobs, job_id, chance):
    """Read again and again from any number on, until the job is final and once more."""
    wrong = []
    final = False
    while not final:
        job = jobs.get_job(job_id)
        final = job.status.final
        begin = chance.randrange(job.line_count + 1)
        found = list(jobs.logs(job_id, begin, unfinished=False))
        wrong += _wrong(found, begin)
        if begin + len(found) < job.line_count:
            wrong.append(f"{job.line_count} lines are said to be there, not {begin + len(found)}")
    return wrong


def _follow_and_read(database, job_id, total):
    with JobManager(database, slots=0) as jobs:
        wrong = _read_about(jobs, job_id, random.Random(9))
        return wrong + _wrong(
            jobs.follow(job_id, 4321, timeout=PATIENCE, unfinished=False), 4321, total
        )
