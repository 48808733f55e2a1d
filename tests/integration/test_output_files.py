"""Output beside the log: a file that gets the bytes of stdout, and a terminal."""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat

import pytest

from jobcore import Command, CommandError, JobManager, Reason, Status
from jobcore.supervisor import output_file
from jobcore.supervisor.output_file import OutputFile
from tests.mounts import in_own_mounts, mount_tmpfs
from tests.processes import PATIENCE, until
from tests.programs import python


def run(jobs, command):
    """Return a job that has ended, and its log as pairs of stream and bytes."""
    job = jobs.wait(jobs.submit(command).id, PATIENCE)
    return job, [(line.stream, line.raw) for line in jobs.logs(job.id)]


# --- stdout_to -------------------------------------------------------------------------


def test_file_gets_the_bytes_of_stdout_and_the_log_everything(running_jobs, tmp_path):
    """No byte is changed, and stderr is only in the log; an existing file is emptied first."""
    path = tmp_path / "out"
    path.write_text("what was there before, and is longer than what follows")
    script = "printf 'a\\0b\\377\\n'; echo err >&2; echo secret; printf end"
    job, lines = run(
        running_jobs,
        Command(script, shell=True, stdout_to=path, redact=["secret"], output_limit=20),
    )

    assert job.status is Status.COMPLETE
    assert path.read_bytes() == b"a\0b\xff\nsecret\nend"
    assert sorted(line for line in lines if line[0] != "system") == [
        ("stderr", b"err\n"),
        ("stdout", b"***\n"),
        ("stdout", b"a\0b\xff\n"),
        ("stdout", b"end"),
    ]


def test_file_gets_megabytes_whole(running_jobs, tmp_path):
    """More than any buffer holds, from several processes of the command."""
    script = "head -c 5000000 /dev/zero & head -c 5000000 /dev/zero; wait"
    job, _ = run(
        running_jobs, Command(script, shell=True, stdout_to=tmp_path / "out", output_limit=10)
    )

    assert job.status is Status.COMPLETE
    assert (tmp_path / "out").read_bytes() == b"\0" * 10_000_000


def test_file_is_made_with_the_umask_of_the_command(running_jobs, tmp_path, monkeypatch):
    """Its path is absolute from the submission on."""
    monkeypatch.chdir(tmp_path)
    command = Command(["true"], stdout_to="out", umask=0o027)
    monkeypatch.chdir("/")
    job, _ = run(running_jobs, command)

    assert job.status is Status.COMPLETE
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


@pytest.mark.parametrize("there", ["a directory", "a FIFO", "a device", "nothing"])
def test_anything_but_a_file_is_refused_at_the_start(running_jobs, tmp_path, there):
    """Nothing blocks, and the last line of the log names the path and the cause."""
    path = {"a directory": tmp_path, "a device": "/dev/null", "nothing": tmp_path / "no" / "out"}
    target = path.get(there, tmp_path / "fifo")
    held = -1
    if there == "a FIFO":
        os.mkfifo(target)
        held = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
    try:
        job, ((stream, line),) = run(running_jobs, Command(["true"], stdout_to=target))
    finally:
        if held >= 0:
            os.close(held)

    assert (job.status, job.reason) == (Status.ERROR, Reason.SPAWN_FAILED)
    assert stream == "system"
    assert f"cannot write its output to {str(target)!r}".encode() in line


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
def test_database_is_never_written_over(running_jobs, database, tmp_path, end):
    """Not even through a link."""
    link = tmp_path / "link"
    link.symlink_to(f"{database}{end}")
    job, ((stream, line),) = run(running_jobs, Command(["true"], stdout_to=link))

    assert job.status is Status.ERROR
    assert stream == "system"
    assert f"stdout_to is the database or a part of it: {str(link)!r}".encode() in line
    assert [one for one in running_jobs.check() if one.verdict == "wrong"] == []


def _fill_and_make_room(database, place):
    """Run a command whose disk is full, stop another one, and make room for the first."""
    mount_tmpfs(place, "256k")
    told = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(str(record.msg))
    logging.getLogger("jobcore").addHandler(handler)

    def is_held(job):
        return any("output held back" in one and str(job.id) in one for one in told)

    with open(f"{place}/ballast", "wb") as ballast:
        ballast.write(b"x" * 100_000)
    with JobManager(database, slots=2) as jobs:
        first, second = (
            Command(["head", "-c", "200000", "/dev/zero"], stdout_to=f"{place}/{name}")
            for name in ("first", "second")
        )
        job = jobs.submit(first)
        until(lambda: is_held(job), "a full disk")
        stopped = jobs.submit(second)
        until(lambda: is_held(stopped), "a second command that waits")
        jobs.stop_job(stopped.id)
        stopped = jobs.wait(stopped.id, PATIENCE)
        running = jobs.get_job(job.id).status
        said = [line.text for line in jobs.logs(stopped.id) if line.stream == "system"]
        os.unlink(f"{place}/ballast")
        ended = jobs.wait(job.id, PATIENCE).status
        return running, ended, os.path.getsize(f"{place}/first"), stopped.status, said


def test_command_waits_while_the_disk_of_its_file_is_full(database, tmp_path):
    """It goes on when there is room, and nothing is missing. A stop ends it all the same."""
    (tmp_path / "full").mkdir()
    running, ended, size, stopped, said = in_own_mounts(
        _fill_and_make_room, database, str(tmp_path / "full")
    )

    assert (running, ended, size) == (Status.RUNNING, Status.COMPLETE, 200_000)
    assert stopped is Status.STOPPED
    assert [line for line in said if "is incomplete: no space left on device" in line] != []


@pytest.fixture
def copy(tmp_path):
    """Return a file that gets a copy, and what it says."""
    said = []
    made = OutputFile(os.fsencode(tmp_path / "out"), 0o022, said.append)
    yield made, said
    made.close()


def fails(monkeypatch, number, *, after=1):
    """Have each write write `after` bytes, and the second one fail."""
    write = os.write
    calls = []

    def one(descriptor, data):
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))
        return write(descriptor, bytes(data[:after]))

    monkeypatch.setattr(output_file.os, "write", one)


def test_output_without_space_waits(copy, monkeypatch, tmp_path):
    """The bytes that could not be written come first, each once."""
    file, said = copy
    with monkeypatch.context() as patch:
        fails(patch, errno.ENOSPC)
        file.write(b"abc")
        assert (file.held, file.errno) == (True, errno.ENOSPC)
    assert file.flush()
    file.write(b"def")
    file.finish()

    assert (tmp_path / "out").read_bytes() == b"abcdef"
    assert (file.held, said) == (False, [])


@pytest.mark.parametrize("number", [errno.EIO, errno.EFBIG, errno.ESTALE])
def test_permanent_write_error_is_logged_once(copy, monkeypatch, number):
    """The command is not held back by it: the log has its output."""
    file, said = copy
    fails(monkeypatch, number)
    for text in (b"abc", b"def"):
        file.write(text)
        assert not file.held
    file.finish()

    (line,) = said
    assert "is incomplete" in line
    assert os.strerror(number).lower() in line


def test_wrong_combinations_are_refused():
    """A terminal has one stream; the file needs stdout by itself."""
    for more in ({"stdout_to": "out"}, {"separate_streams": True}):
        with pytest.raises(CommandError, match="one stream"):
            Command(["true"], pty=True, **more)
    for path in ("", 3, "a\0b"):
        with pytest.raises(CommandError, match="stdout_to"):
            Command(["true"], stdout_to=path)
    with pytest.raises(CommandError, match="pty must be"):
        Command(["true"], pty=1)
    command = Command(["true"], stdout_to=b"/\xff")
    assert command.separate_streams
    assert Command.from_json(command.to_json()) == command


# --- pty -------------------------------------------------------------------------------


def test_command_gets_its_own_terminal(running_jobs):
    """It is stdin, stdout, stderr and the controlling terminal, of the usual size."""
    script = (
        "test -t 0 && test -t 1 && test -t 2 && stty size && echo $TERM && cat && "
        "echo hi > /dev/tty && exit 3"
    )
    job, lines = run(running_jobs, Command(script, shell=True, pty=True, env={"TERM": "vt100"}))

    assert job.exit_code == 3
    assert lines == [("output", line) for line in (b"24 80\r\n", b"vt100\r\n", b"hi\r\n")]
    assert [line.text for line in running_jobs.logs(job.id)] == ["24 80", "vt100", "hi"]


def test_no_byte_of_a_terminal_is_lost_at_the_end(running_jobs):
    """What the kernel has not passed on when the command ends is read all the same."""
    job, lines = run(running_jobs, Command("seq 50000", shell=True, pty=True))

    assert job.status is Status.COMPLETE
    assert [int(line) for _, line in lines] == list(range(1, 50_001))


def test_input_that_is_given_is_the_standard_input(running_jobs):
    """The terminal is then only that of the output."""
    _, lines = run(
        running_jobs, Command("test -t 0 || cat", shell=True, pty=True, stdin=b"given\n")
    )

    assert lines == [("output", b"given\r\n")]


def test_terminal_without_an_open_process_stays(running_jobs):
    """A command may close its terminal and open it again without a hang-up."""
    script = "exec > /dev/null 2>&1 < /dev/null; sleep 0.1; echo back > /dev/tty"
    job, lines = run(running_jobs, Command(script, shell=True, pty=True))

    assert (job.exit_code, lines) == (0, [("output", b"back\r\n")])


def test_command_with_a_terminal_is_stopped_and_timed_out(running_jobs):
    """Signals and time-outs are those of every command."""
    waits = python("import os, signal; os.write(1, b'ready\\n'); signal.pause()")
    job = running_jobs.submit(Command(waits, pty=True))
    assert next(running_jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
    running_jobs.stop_job(job.id)
    stopped = running_jobs.wait(job.id, PATIENCE)
    late, _ = run(running_jobs, Command(waits, pty=True, timeout=0.2))

    assert (stopped.status, stopped.signal) == (Status.STOPPED, signal.SIGTERM)
    assert (late.status, late.reason) == (Status.STOPPED, Reason.TIMEOUT)
