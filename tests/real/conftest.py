"""Fixtures: a folder that real tools work in, and a manager whose jobs leave no process."""

from __future__ import annotations

import os
import uuid

import pytest

from jobcore import JobManager
from tests.processes import carrying, until


@pytest.fixture
def folder(tmp_path):
    """Return the folder that the tools work in, with all that they keep for themselves."""
    made = tmp_path / "work"
    (made / "home").mkdir(parents=True)
    return made


@pytest.fixture
def env(folder):
    """Return the environment of the tools; no process that has it may be left behind."""
    home = folder / "home"
    mark = uuid.uuid4().hex
    yield {
        "HOME": str(home),
        "TMPDIR": str(home),
        "DLT_DATA_DIR": str(home / "dlt"),
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "PATH": f"{home}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
        "JOBCORE_TEST": mark,
    }
    until(lambda: not carrying(mark), "the end of all that was started")


@pytest.fixture
def manager(database, clock, env):  # noqa: ARG001 - what has this environment outlives no manager
    """Return a manager that runs two jobs at once, and retries when the test moves the clock."""
    with JobManager(database, slots=2, clock=clock, on_exit="stop") as made:
        yield made


@pytest.fixture
def text_of(manager):
    """Return what gives the lines of a job's log, which are numbered without a gap."""

    def lines(job):
        read = list(manager.logs(job.id))
        assert [line.sequence for line in read] == list(range(len(read)))
        return [line.text for line in read]

    return lines


@pytest.fixture
def retried(manager, clock):
    """Return what runs the retry of a failed job, and returns it when it is final."""

    def run(failed):
        (waiting,) = manager.list_jobs(pipeline_id=failed.pipeline_id, status="QUEUED")
        assert (waiting.attempt, waiting.retry_of) == (failed.attempt + 1, failed.id)
        assert waiting.not_before > failed.created
        clock.advance(60)  # more than a first retry waits
        return manager.wait(waiting.id, timeout=LONG)

    return run


#: Seconds after which a tool that starts, works and ends is given up.
LONG = 120.0


class Feed:
    """A FIFO in place of a file: it is read as a file whose end has not been written yet."""

    def __init__(self, path):
        os.mkfifo(path)
        # Both ends, so that no open blocks and no reader sees the end of the file.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def write(self, line):
        """Write a line, unless the reader is too far behind."""
        try:
            os.write(self._descriptor, line.encode())
        except BlockingIOError:
            pass  # the FIFO is full: there is enough to read

    def close(self):
        """Let go of it."""
        os.close(self._descriptor)


@pytest.fixture
def feed():
    """Return what makes a `Feed` at a path."""
    made = []

    def make(path):
        made.append(Feed(path))
        return made[-1]

    yield make
    for one in made:
        one.close()
