"""What a task's body logs and prints becomes the log of its job."""

from __future__ import annotations

import contextlib
import logging

import pytest

from jobcore import ArgumentError, Stopped


def lines_of(jobs, task):
    return [(line.stream, line.text) for line in jobs.logs(task.job.id)]


@pytest.fixture
def logger():
    """Return a logger of its own, without handlers afterwards."""
    made = logging.getLogger("tests.task_output")
    made.setLevel(logging.DEBUG)
    yield made
    made.handlers.clear()


def test_lines_have_the_stream_that_is_asked_for(jobs):
    """By default they are output; another name is refused."""
    with jobs.task("ELT") as task:
        task.log("a")
        task.log("b", stream="stderr")
        assert jobs.append_log(task.job.id, "c", stream="stdout") == 3
        for call in (task.log, task.handler, task.writer):
            with pytest.raises(ArgumentError, match="stream must be"):
                call(stream="system")
        with pytest.raises(ArgumentError, match="stream must be"):
            jobs.append_log(task.job.id, "d", stream="stdin")

    assert lines_of(jobs, task) == [("output", "a"), ("stderr", "b"), ("stdout", "c")]


def test_logged_record_is_stored_when_the_call_returns(jobs, logger):
    """Formatted, with its traceback, from the level on; jobcore's own events are left out."""
    with jobs.task("ELT") as task:
        handler = task.handler("INFO", stream="stderr")
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.debug("not this")
        logger.info("rows: %d", 3)
        assert lines_of(jobs, task) == [("stderr", "INFO rows: 3")]
        try:
            raise ValueError("broken")
        except ValueError:
            logger.exception("failed")
        handler.handle(logging.makeLogRecord({"name": "jobcore", "msg": "own", "levelno": 50}))
        handler.handle(logging.makeLogRecord({"name": "jobcore.x", "msg": "own", "levelno": 50}))
    texts = [text for _, text in lines_of(jobs, task)]

    assert texts[1:3] == ["ERROR failed", "Traceback (most recent call last):"]
    assert texts[-1] == "ValueError: broken"


def test_logging_after_the_end_of_the_job_does_nothing(jobs, logger, capsys):
    """It neither raises nor prints to stderr."""
    task = jobs.task("ELT")

    def work():
        with task:
            logger.addHandler(task.handler())
            jobs.stop_job(task.job.id)
            logger.info("too late")

    with pytest.raises(Stopped):
        work()
    logger.info("much too late")

    assert lines_of(jobs, task) == []
    assert capsys.readouterr().err == ""


def test_printed_text_becomes_lines(jobs):
    """A line is stored when it ends, and the last one at the end of the block."""
    with jobs.task("ELT") as task:
        with contextlib.redirect_stdout(task.writer()):
            print("one", end=" ")
            assert lines_of(jobs, task) == []
            print("line\nand another\n\nrest", end="")
        print("warning", file=task.writer("stderr"), flush=True)
        assert len(lines_of(jobs, task)) == 4

    assert lines_of(jobs, task) == [
        ("stdout", "one line"),
        ("stdout", "and another"),
        ("stdout", ""),
        ("stderr", "warning"),
        ("stdout", "rest"),
    ]


def test_prefix_begins_each_line_of_a_writer(jobs):
    """Several writers of a task can be told apart; a carriage return ends no line."""
    with jobs.task("ELT") as task:
        tap, target = task.writer(prefix="tap | "), task.writer("stderr", prefix="target | ")
        print("one\n\n50 %\r100 %", file=tap)
        print("12 rows", file=target)
        print("rest", end="", file=tap)
        with pytest.raises(ArgumentError, match="prefix must be a text without a newline"):
            task.writer(prefix="tap\n")

    assert lines_of(jobs, task) == [
        ("stdout", "tap | one"),
        ("stdout", "tap | "),
        ("stdout", "tap | 50 %\r100 %"),
        ("stderr", "target | 12 rows"),
        ("stdout", "tap | rest"),
    ]


def test_writer_raises_after_the_job_has_ended(jobs):
    """A print ends the body then, as `log` does; closed writers refuse."""
    reached = []

    def work():
        with jobs.task("ELT") as task:
            writer = task.writer()
            jobs.stop_job(task.job.id)
            reached.append("print")
            print("too late", file=writer)
            reached.append("behind it")

    with pytest.raises(Stopped):
        work()
    assert reached == ["print"]
    with jobs.task("ELT") as task:
        writer = task.writer()
        writer.write("a")
        writer.close()
        writer.close()
        with pytest.raises(ValueError, match="closed"):
            writer.write("b")
        with pytest.raises(TypeError, match="takes text"):
            task.writer().write(b"bytes")

    assert lines_of(jobs, task) == [("stdout", "a")]
