"""Firehose: more output than anybody wants to keep in memory, exact, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import subprocess

from jobcore import JobManager, Status
from jobcore.supervisor import job_directory
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.processes import Child, open_gate, until

MEBIBYTE = 2**20
#: Bytes that a host's resident set may grow by, and those that a supervisor's is.
HOST_GROWTH, SUPERVISOR_SIZE = 64 * MEBIBYTE, 24 * MEBIBYTE
#: Seconds after which a test gives up: the full ones take a minute on a busy machine.
PATIENCE = 600.0

#: Waits until it is looked at, so that its supervisor is known before it begins; and behind all
#: that it says once more, so that the supervisor is there until all of that was read.
_HELD = 'read -r _ < "$GATE"; {}; ended=$?; exec >&- 2>&-; read -r _ < "$GATE"; exit $ended'


def resident(pid, what):
    """Return a size in bytes that the kernel keeps of a process: VmRSS, or VmHWM, its largest."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(what)) * 1024
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return 0  # gone, or a zombie, which has no memory


def forget_largest():
    """Have the kernel start again with the largest size of this process."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def supervisor_of(database, job_id):
    """Return the pid of a supervisor, once the command may have begun."""
    path = os.path.join(f"{database}.jobs", job_id.hex)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        record = until(lambda: job_directory.read_record(directory, job_directory.RUN), "the start")
    finally:
        os.close(directory)
    return record["supervisor"]


def pour(database, gate, script, count):
    """Run a script that says so many lines as a job, and return what its log was, and took."""
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        job = jobs.submit(["sh", "-c", _HELD.format(script)], env={"GATE": gate})
        until(lambda: jobs.get_job(job.id).status is Status.RUNNING, "the claim")
        supervisor = supervisor_of(database, job.id)
        forget_largest()
        before = resident("self", "VmRSS")
        open_gate(gate)
        digest, lines, partial, largest = hashlib.sha256(), 0, 0, 0
        for line in jobs.follow(job.id, timeout=PATIENCE, unfinished=False):
            assert line.sequence == lines
            lines = line.sequence + 1
            partial += line.partial
            digest.update(line.raw)
            if lines == count:
                largest = resident(supervisor, "VmHWM")
                open_gate(gate)
        job = jobs.wait(job.id, PATIENCE)
        sizes = resident("self", "VmHWM") - before, largest
        return (job.status, job.exit_code, job.line_count), digest.hexdigest(), partial, sizes


def said(script):
    """Return the checksum of what a script prints, as others compute it."""
    command = ["sh", "-c", f"{{ {script}; }} | sha256sum"]
    return subprocess.run(command, capture_output=True, check=True).stdout.split()[0].decode()


@in_rounds(smoke=200, full=5000)
def test_thousands_of_lines(database, gate, rounds):
    """Every line is there, five million of them, and neither host nor supervisor grows by them."""
    count = rounds.total * 1000
    script = f"seq -f 'line %.0f of a command that has much to say' {count}"

    child = Child(pour, database, gate, script, count)
    ended, digest, partial, (growth, largest) = child.result(PATIENCE)

    assert ended == (Status.COMPLETE, 0, count)
    assert (digest, partial) == (said(script), 0)
    assert growth < HOST_GROWTH
    assert 0 < largest < SUPERVISOR_SIZE
    with JobManager(database, slots=0) as jobs:
        check(jobs, lines=False)
    rounds.did(rounds.total)


@in_rounds(smoke=16, full=256)
def test_mebibytes_of_one_line(database, gate, rounds):
    """A line without an end, larger than a host may grow, is there in pieces, byte for byte."""
    size = rounds.total * MEBIBYTE
    script = f"seq -s ' ' 1000000000 | head -c {size}"

    pieces = size // 65536
    child = Child(pour, database, gate, script, pieces)
    ended, digest, partial, (growth, largest) = child.result(PATIENCE)

    assert ended == (Status.COMPLETE, 0, pieces)
    assert (digest, partial) == (said(script), pieces - 1)
    assert growth < HOST_GROWTH
    assert 0 < largest < SUPERVISOR_SIZE
    with JobManager(database, slots=0) as jobs:
        check(jobs, lines=False)
    rounds.did(rounds.total)
