"""Unfinished lines: prompts and bars are seen while they stand, and kept whatever dies."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from uuid import UUID

import pytest

from jobcore import Command, JobcoreError, JobManager, Status
from jobcore.supervisor import frames, job_directory
from tests.processes import PATIENCE, Child, open_gate, until

PROMPT = "Overwrite the backup? [y/N] "
#: Asks, and waits for the FIFO; the answer ends the line.
ASKS = 'printf "Overwrite the backup? [y/N] "; read -r _ < "$GATE"; echo no; exit 3'
#: Redraws a line, and never ends it.
DRAWS = 'for i in $(seq 500); do printf "step $i of 500\\r"; done; exec sleep 300'
DRAWN = b"".join(b"step %d of 500\r" % number for number in range(1, 501))


def asking(gate, **options):
    """Return the command that asks."""
    return Command(["sh", "-c", ASKS], env={"GATE": gate}, **options)


def shown(jobs, job):
    """Return the unfinished lines of a job."""
    return [line for line in jobs.logs(job.id) if line.unfinished]


def lines(jobs, job):
    """Return the numbered lines: number, stream, bytes, and whether it is a piece."""
    found = jobs.logs(job.id, unfinished=False)
    return [(line.sequence, line.stream, line.raw, line.partial) for line in found]


@contextlib.contextmanager
def directory(database, job):
    """Give the directory of a job."""
    descriptor = os.open(f"{database}.jobs/{job.id.hex}", os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def supervisor(database, job):
    """Return the pid of a job's supervisor."""
    with directory(database, job) as descriptor:
        return job_directory.read_record(descriptor, job_directory.RUN)["supervisor"]


def test_prompt_is_seen_everywhere_while_it_stands(running_jobs, gate):
    """It has no number until its line ends, and is then one line at its first time."""
    jobs = running_jobs
    job = jobs.submit(asking(gate))
    following = jobs.follow(job.id, timeout=PATIENCE)
    seen = next(following)

    for line in (seen, *jobs.logs(job.id), *jobs.tail(job.id, 1)):
        assert (line.sequence, line.stream, line.text) == (None, "output", PROMPT)
    assert list(jobs.logs(job.id, unfinished=False)) == []
    assert list(jobs.tail(job.id, 0)) == []
    assert list(jobs.logs(job.id, 1)) == list(jobs.logs(job.id, 0, limit=0)) == []
    assert jobs.get_job(job.id).line_count == 0
    open_gate(gate)

    (line,) = following
    assert (line.sequence, line.text, line.partial) == (0, PROMPT + "no", False)
    assert line.time_ns == seen.time_ns
    assert jobs.wait(job.id, PATIENCE).exit_code == 3


def test_prompt_comes_before_the_line_about_the_stop(running_jobs, gate):
    """In its place and with its own time."""
    jobs = running_jobs
    job = jobs.submit(asking(gate, grace=0))
    seen = next(jobs.follow(job.id, timeout=PATIENCE))
    jobs.stop_job(job.id)
    jobs.wait(job.id, PATIENCE)

    first, *rest = jobs.logs(job.id)
    assert (first.sequence, first.text, first.time_ns) == (0, PROMPT, seen.time_ns)
    assert [line.stream for line in rest] == ["system"] * len(rest) != []


def test_follower_gets_changes_and_then_the_line_once(running_jobs, gate):
    """Each form begins with the one before it; only numbered lines come without that option."""
    jobs = running_jobs
    script = 'for i in 1 2 3; do printf "$i "; read -r _ < "$GATE"; done; echo end; echo more'
    job = jobs.submit(Command(["sh", "-c", script], env={"GATE": gate}))
    seen = []
    for line in jobs.follow(job.id, timeout=PATIENCE):
        seen.append(line)
        if line.unfinished:
            open_gate(gate)

    unfinished = [line.raw for line in seen if line.unfinished]
    assert unfinished == [b"1 ", b"1 2 ", b"1 2 3 "]
    assert [(line.sequence, line.raw) for line in seen[3:]] == [(0, b"1 2 3 end\n"), (1, b"more\n")]
    assert all(line.unfinished for line in seen[:3])
    assert list(jobs.follow(job.id, unfinished=False)) == list(jobs.logs(job.id))


def test_each_of_two_streams_has_one(running_jobs, gate):
    """A prompt stays while the other stream goes on."""
    jobs = running_jobs
    script = 'printf "sure? "; echo warning >&2; printf "and " >&2; read -r _ < "$GATE"; echo'
    command = Command(["sh", "-c", script], env={"GATE": gate}, separate_streams=True)
    job = jobs.submit(command)
    until(lambda: len(shown(jobs, job)) == 2, "both")

    assert {line.stream: line.raw for line in shown(jobs, job)} == {
        "stdout": b"sure? ", "stderr": b"and ",
    }  # fmt: skip
    assert [line.raw for line in jobs.tail(job.id, 1)] == [shown(jobs, job)[-1].raw]
    assert len(list(jobs.tail(job.id, 3))) == 3
    open_gate(gate)
    jobs.wait(job.id, PATIENCE)
    assert sorted(line[1:] for line in lines(jobs, job)) == [
        ("stderr", b"and ", False), ("stderr", b"warning\n", False), ("stdout", b"sure? \n", False),
    ]  # fmt: skip


def test_prompt_is_seen_while_the_other_stream_is_busy(running_jobs, tmp_path):
    """A prompt is shown even if each look finds more lines of the other stream."""
    jobs = running_jobs
    script = 'printf "sure? "; while [ ! -e "$GO" ]; do echo warning >&2; done; echo yes'
    env = {"GO": str(tmp_path / "go")}
    job = jobs.submit(Command(["sh", "-c", script], env=env, separate_streams=True))
    seen = next(line for line in jobs.follow(job.id, timeout=PATIENCE) if line.stream == "stdout")
    until(lambda: [line.raw for line in shown(jobs, job)] == [b"sure? "], "the prompt in logs")
    until(lambda: b"sure? " in [line.raw for line in jobs.tail(job.id, 1)], "the prompt in tail")
    (tmp_path / "go").touch()
    jobs.wait(job.id, PATIENCE)

    assert (seen.sequence, seen.raw) == (None, b"sure? ")
    (line,) = (line for line in jobs.logs(job.id) if line.stream == "stdout")
    assert (line.raw, line.time_ns) == (b"sure? yes\n", seen.time_ns)


def beside(stream):
    """Return the shell's redirections of a prompt on a stream, and of the lines on the other."""
    return ("", ">&2") if stream == "stdout" else (">&2", "")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("is_async", [False, True])
def test_follower_that_never_catches_up_sees_a_prompt(running_jobs, stream, is_async):
    """The other stream always has more lines than the follower has read."""
    prompt, other = beside(stream)
    script = f'printf "sure? " {prompt}; while :; do echo warning {other}; done'
    job = running_jobs.submit(Command(["sh", "-c", script], separate_streams=True))
    there, numbers = 0, []

    def is_prompt(line):
        nonlocal there
        if line.sequence is not None:
            numbers.append(line.sequence)
            if line.sequence >= there - 1:
                there = until(lambda: (n := running_jobs.get_job(job.id).line_count) > there and n)
        return line.stream == stream

    async def first_prompt():
        lines = running_jobs.follow_async(job.id, timeout=PATIENCE)
        while not is_prompt(line := await anext(lines)):
            pass
        return line

    if is_async:
        seen = asyncio.run(first_prompt())
    else:
        seen = next(filter(is_prompt, running_jobs.follow(job.id, timeout=PATIENCE)))
    running_jobs.stop_job(job.id, grace=0)

    assert (seen.sequence, seen.raw) == (None, b"sure? ")
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("is_async", [False, True])
def test_follower_of_a_busy_job_gets_each_byte_once(running_jobs, gate, is_async):
    """Each form of a prompt begins with the one before it, and its line with the last one."""
    script = (
        '(for i in 1 2 3; do printf "$i? "; read -r _ < "$GATE"; done; echo yes; : > "$GATE.end") &'
        'while [ ! -e "$GATE.end" ]; do echo warning >&2; done'
    )
    command = Command(["sh", "-c", script], env={"GATE": gate}, separate_streams=True)
    job = running_jobs.submit(command)
    found = []

    def take(line):
        found.append(line)
        if line.unfinished:
            open_gate(gate)

    async def take_all():
        async for line in running_jobs.follow_async(job.id, timeout=PATIENCE):
            take(line)

    if is_async:
        asyncio.run(take_all())
    else:
        for line in running_jobs.follow(job.id, timeout=PATIENCE):
            take(line)

    assert [line for line in found if not line.unfinished] == list(running_jobs.logs(job.id))
    asked = [line for line in found if line.stream == "stdout"]
    assert [(line.unfinished, line.raw) for line in asked] == [
        (True, b"1? "), (True, b"1? 2? "), (True, b"1? 2? 3? "), (False, b"1? 2? 3? yes\n"),
    ]  # fmt: skip
    assert len({line.time_ns for line in asked}) == 1


def test_follower_calls_on_wait_before_waiting(running_jobs, gate):
    """`on_wait` can flush the lines that were returned before."""
    script = 'printf "1? "; read -r _ < "$GATE"; echo yes; echo more'
    job = running_jobs.submit(Command(["sh", "-c", script], env={"GATE": gate}))
    buffered, flushed = [], []

    def flush():
        if buffered == [b"1? "]:
            open_gate(gate)
        flushed.extend(buffered)
        buffered.clear()

    take = buffered.append
    for line in running_jobs.follow(job.id, timeout=PATIENCE, on_wait=flush):
        take(line.raw)
    flush()

    assert flushed == [b"1? ", b"1? yes\n", b"more\n"]


class TestTail:
    """Which unfinished lines a reader gets, by what it has read."""

    @staticmethod
    def tail(job, first, end=None, *, stream=frames.STDOUT):
        """Write a tail as a supervisor does that has numbered lines up to `first`."""
        text = b"half "
        data = frames.encode_header(stream, frames.OPEN_END, first, 1, 5, text) + text
        if end is not None:
            data += frames.encode_header(stream, 0, end, 0, first, b"")
        with open(f"{job.path}/{job_directory.TAIL}", "wb") as file:
            file.write(data)

    @staticmethod
    def started(scripted, *lines):
        job = scripted()
        job.started()
        for stream, text in lines:
            job.write(text, stream=stream)
        return job

    @staticmethod
    def follow(jobs, job, sequence=0):
        """Return what a follower gets before it must wait, with a further line "end"."""
        job.write(b"end\n", stream=frames.STDERR)
        found = []
        for line in jobs.follow(job.id, sequence, timeout=PATIENCE):
            if line.text == "behind":
                break
            found.append(line.text)
            if line.text == "end":  # it does not wait before it has looked for unfinished lines
                job.write(b"behind\n", stream=frames.STDERR)
        return found

    def test_prompt_comes_before_lines_that_are_not_imported_yet(self, jobs, scripted):
        """The supervisor is ahead by lines of the other stream alone."""
        job = self.started(scripted, (frames.STDERR, b"other\n"))
        self.tail(job, 1000, 0)

        for found in (jobs.logs(job.id), jobs.tail(job.id, 2)):
            assert [(line.sequence, line.text) for line in found] == [(0, "other"), (None, "half ")]
        assert [line.text for line in jobs.tail(job.id, 1)] == ["half "]
        assert self.follow(jobs, job) == ["other", "end", "half "]

    @pytest.mark.parametrize("end", [2, None])
    def test_prompt_waits_for_the_earlier_lines_of_its_stream(self, jobs, scripted, end):
        """They are not imported yet, or the supervisor does not tell."""
        job = self.started(scripted, (frames.STDERR, b"other\n"))
        self.tail(job, 1000, end)
        assert [line.text for line in jobs.logs(job.id)] == ["other"]
        assert [line.text for line in jobs.tail(job.id, 1)] == ["other"]
        job.write(b"whole\n", stream=frames.STDOUT)

        half = ["half "] if end else []
        assert [line.text for line in jobs.logs(job.id)] == ["other", "whole", *half]
        assert [line.text for line in jobs.tail(job.id, 1)] == (half or ["whole"])
        assert self.follow(jobs, job) == ["other", "whole", "end", *half]

    def test_follower_waits_for_the_earlier_lines_of_the_stream(self, jobs, scripted):
        """It has read all lines that are there."""
        job = self.started(scripted, (frames.STDERR, b"other\n"))
        self.tail(job, 1000, 2000)

        assert self.follow(jobs, job) == ["other", "end"]

    @pytest.mark.parametrize(
        ("stream", "is_seen"),
        [(frames.STDERR, True), (frames.STDOUT, False), (frames.SYSTEM, False)],
    )
    def test_follower_from_later_on_finds_what_is_numbered(self, jobs, scripted, stream, is_seen):
        """It does not read the lines that may contain the text."""
        job = self.started(scripted, (frames.STDERR, b"other\n"), (stream, b"half line\n"))
        self.tail(job, 1, 0)

        half = ["half "] if is_seen else []
        assert [line.text for line in jobs.logs(job.id, 2)] == half
        assert self.follow(jobs, job, 2) == ["end", *half]

    def test_remains_of_an_earlier_tail_are_ignored(self, jobs, scripted):
        """Its end of lines is for another number."""
        job = self.started(scripted, (frames.STDERR, b"other\n"))
        self.tail(job, 999, 0)
        text = b"half "
        header = frames.encode_header(frames.STDOUT, frames.OPEN_END, 1000, 1, 5, text)
        with open(f"{job.path}/{job_directory.TAIL}", "r+b") as file:
            file.write(header + text)

        assert self.follow(jobs, job) == ["other", "end"]


@pytest.mark.parametrize("victim", ["supervisor", "host", "both"])
def test_drawn_bar_survives_a_sigkill(database, victim):
    """Each byte that was seen is kept once, before the line that says what has died."""

    def host(told):
        with JobManager(database, slots=1) as jobs:
            job = jobs.submit(["sh", "-c", DRAWS])
            until(lambda: [line.raw for line in shown(jobs, job)] == [DRAWN], "the bar")
            os.write(told, job.id.bytes)
            signal.pause()

    reader, told = os.pipe()
    child = Child(host, told)
    with JobManager(database, slots=0) as jobs:
        job = jobs.get_job(UUID(bytes=os.read(reader, 16)))
        pid = supervisor(database, job)
        if victim != "supervisor":
            child.kill()
        if victim != "host":
            os.kill(pid, signal.SIGKILL)
        else:
            assert [line.raw for line in shown(jobs, job)] == [DRAWN]
            jobs.stop_job(job.id, grace=0)
        jobs.recover()
        job = jobs.wait(job.id, PATIENCE)
        if victim == "supervisor":
            child.kill()
        expected = "stopped" if victim == "host" else "lost"
        assert job.reason == expected
        number, stream, raw, partial = lines(jobs, job)[0]
        assert (number, stream, raw) == (0, "output", DRAWN)
        assert partial == (victim == "host")
        assert {stream for _, stream, *_ in lines(jobs, job)[1:]} == {"system"}
    os.close(reader)
    os.close(told)


class TestResolver:
    """What becomes of the tail of a supervisor that is dead, at every step of its work."""

    @staticmethod
    def framed(first, text, stream=frames.OUTPUT, time_ns=5):
        return frames.encode_header(stream, frames.OPEN_END, first, 1, time_ns, text) + text

    @pytest.mark.parametrize(
        ("spooled", "kept"),
        [
            ([], ["half "]),  # number 0 was not given yet
            ([(frames.OUTPUT, 0, b"half line\n")], ["half line"]),
            ([(frames.OUTPUT, frames.PARTIAL, b"half "), (frames.SYSTEM, 0, b"said\n")],
             ["half ", "said"]),
            ([(frames.SYSTEM, 0, b"said\n")], ["said"]),  # before it all text was numbered
            ([(frames.STDERR, 0, b"other\n")], ["other", "half "]),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("imported", [False, True])
    def test_text_is_numbered_unless_the_spool_has_it(
        self, jobs, scripted, spooled, kept, imported
    ):
        """Also where the spool was imported before, and its file is not read again."""
        job = scripted()
        job.started()
        for stream, flags, payload in spooled:
            job.write(payload, stream=stream, flags=flags)
        stream = frames.STDOUT if spooled and spooled[0][0] == frames.STDERR else frames.OUTPUT
        with open(f"{job.path}/{job_directory.TAIL}", "wb") as file:
            file.write(self.framed(0, b"half ", stream))
        if imported:
            list(jobs.logs(job.id))
        job.die()
        jobs.recover()

        found = list(jobs.logs(job.id))
        assert [line.text for line in found[:-1]] == kept
        assert [line.sequence for line in found] == list(range(len(found)))
        assert found[-1].stream == "system"
        assert jobs.get_job(job.id).status == Status.ERROR

    def dead(self, scripted, tail):
        """Return a job whose supervisor has died, with whole lines, a torn frame and a tail."""
        job = scripted()
        job.started()
        job.write(b"whole\n")
        job.append(self.framed(1, b"x" * 100)[:60])
        tail(f"{job.path}/{job_directory.TAIL}")
        job.die()
        return job

    def text(self, path):
        """Restore the tail of a supervisor that dies while it writes an unfinished line."""
        with open(path, "wb") as file:
            file.write(self.framed(1, b"half "))

    def test_text_after_a_torn_frame_is_numbered(self, jobs, scripted):
        """The frame that the SIGKILL tore is passed over."""
        job = self.dead(scripted, self.text)
        jobs.recover()

        found = [(line.sequence, line.text) for line in jobs.logs(job.id)]
        assert found[:2] == [(0, "whole"), (1, "half ")]

    def test_full_disk_leaves_nothing_half(self, jobs, scripted, monkeypatch):
        """The verdict waits for space, and the text is there once."""
        job = self.dead(scripted, self.text)
        write_all = job_directory.write_all

        def full(descriptor, data):
            os.write(descriptor, data[:40])
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(job_directory, "write_all", full)
        for _ in range(3):
            with contextlib.suppress(JobcoreError):
                jobs.recover()
            assert jobs.get_job(job.id).status == Status.RUNNING
        monkeypatch.setattr(job_directory, "write_all", write_all)
        jobs.recover()

        assert [line.text for line in jobs.logs(job.id)][:2] == ["whole", "half "]
        assert jobs.get_job(job.id).line_count == 3

    @pytest.mark.parametrize(
        "tail",
        [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path),
         lambda path: os.close(os.open(path, os.O_CREAT))],
        ids=["directory", "FIFO", "link", "unreadable"],
    )  # fmt: skip
    def test_irregular_tail_file_does_not_prevent_settling(self, jobs, scripted, tail):
        """It is passed over, and goes with the directory."""
        job = self.dead(scripted, tail)
        jobs.recover()

        assert jobs.get_job(job.id).status == Status.ERROR
        assert next(jobs.logs(job.id)).text == "whole"
        assert job.gone()
