"""Scripts: values, checked at once, and what they come to."""

from __future__ import annotations

import dataclasses
import errno
import math
import pickle
import signal

import pytest

from jobcore.testing import Script
from tests.cases import each


def test_the_shortest_script_exits_with_0_at_once():
    """It writes nothing and takes no time."""
    script = Script()

    assert list(script.parts()) == []
    assert script.duration == 0
    assert script.exit_code == 0


def test_lines_get_their_newline():
    """Text and bytes are lines alike; one that has its newline gets no second one."""
    script = Script(["é", b"\xff", "with\n", b"cr\r\n", "two\nlines", ""])

    assert list(script.parts()) == [
        ("stdout", "é\n".encode()),
        ("stdout", b"\xff\n"),
        ("stdout", b"with\n"),
        ("stdout", b"cr\r\n"),
        ("stdout", b"two\nlines\n"),
        ("stdout", b"\n"),
    ]


def test_numbers_are_pauses():
    """They are pauses between lines, and add up to the duration."""
    script = Script(["a", 1, 2.5, "b", 0])

    assert list(script.parts()) == [("stdout", b"a\n"), 1.0, 2.5, ("stdout", b"b\n"), 0.0]
    assert script.duration == 3.5


def test_a_line_may_go_to_either_stream():
    """A line without a stream goes to stdout."""
    script = Script(["a", ("stderr", "b"), ("stdout", b"c")])

    assert list(script.parts()) == [("stdout", b"a\n"), ("stderr", b"b\n"), ("stdout", b"c\n")]


def test_scripted_progress_report_is_not_a_line():
    """It goes to a stream of its own, and is not the last line that may be left open."""
    script = Script(["a", ("progress", "1/2 loading"), 1, ("progress", b"2/2")], open_end=True)

    assert list(script.parts()) == [
        ("stdout", b"a"),
        ("progress", b"1/2 loading\n"),
        1.0,
        ("progress", b"2/2\n"),
    ]


def test_the_last_line_may_be_left_open():
    """Only that one has no newline, wherever pauses are."""
    assert list(Script(["a", "b", 3], open_end=True).parts()) == [
        ("stdout", b"a\n"),
        ("stdout", b"b"),
        3.0,
    ]
    assert list(Script(["a", ""], open_end=True).parts())[1] == ("stdout", b"")
    assert list(Script([("unfinished", "a "), "b", ("unfinished", b"c\r")]).parts()) == [
        ("stdout", b"a "), ("stdout", b"b\n"), ("stdout", b"c\r"),
    ]  # fmt: skip
    assert list(Script(["a"], floods=2, open_end=True).parts()) == [
        ("stdout", b"a\n"),
        ("stdout", b"flood 0\nflood 1"),
    ]


def test_a_flood_is_numbered_and_comes_in_pieces():
    """All of its lines are there, in order, and no piece is much more than a pipe holds."""
    pieces = [data for _, data in Script(floods=100_000).parts()]

    assert b"".join(pieces).splitlines() == [b"flood %d" % number for number in range(100_000)]
    assert max(map(len, pieces)) < 2**16


def test_a_script_that_hangs_takes_for_ever():
    """Its duration is infinite."""
    assert Script(["a", 5], hangs=True).duration == math.inf


def test_a_script_is_a_value():
    """It is frozen, hashable, picklable, equal to an equal one, and copies its lists."""
    lines = ["a", 1]
    script = Script(lines, exit_code=3)
    lines.append("b")

    assert script == Script(("a", 1), exit_code=3)
    assert hash(script) == hash(Script(["a", 1], exit_code=3))
    assert pickle.loads(pickle.dumps(script)) == script
    assert dataclasses.replace(script, exit_code=4) == Script(["a", 1], exit_code=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        script.exit_code = 4


@each(
    ("fields", "why"),
    [
        ({"lines": "abc"}, "list of lines"),
        ({"lines": b"abc"}, "list of lines"),
        ({"lines": 5}, "list of lines"),
        ({"lines": [None]}, "line or a pause"),
        ({"lines": [True]}, "line or a pause"),
        ({"lines": [-1]}, "pause"),
        ({"lines": [math.inf]}, "pause"),
        ({"lines": [math.nan]}, "pause"),
        ({"lines": [("stdin", "a")]}, "stdin"),
        ({"lines": [("stderr", 5)]}, "str or bytes"),
        ({"lines": [("stderr", "a", "b")]}, "line or a pause"),
        ({"lines": ["\ud800"]}, "encoded"),
        ({"exit_code": -1}, "exit_code"),
        ({"exit_code": 256}, "exit_code"),
        ({"exit_code": True}, "exit_code"),
        ({"exit_code": "1"}, "exit_code"),
        ({"signal": 0}, "signal"),
        ({"signal": 65}, "signal"),
        ({"signal": True}, "signal"),
        ({"signal": "SIGTERM"}, "signal"),
        ({"signal": signal.SIGCHLD}, "SIGCHLD"),
        ({"signal": signal.SIGSTOP}, "SIGSTOP"),
        ({"cannot_start": 0}, "errno"),
        ({"cannot_start": True}, "errno"),
        ({"cannot_start": "ENOENT"}, "errno"),
        ({"cannot_start": 99_999}, "errno"),
        ({"floods": -1}, "floods"),
        ({"floods": 10**9}, "floods"),
        ({"floods": 1.0}, "floods"),
        ({"exit_code": 3, "signal": 9}, "exit_code and signal"),
        ({"hangs": True, "exit_code": 3}, "exit_code and hangs"),
        ({"dies": True, "hangs": True}, "hangs and dies"),
        ({"cannot_start": errno.ENOENT, "dies": True}, "cannot_start and dies"),
        ({"cannot_start": errno.ENOENT, "lines": ["a"]}, "does nothing else"),
        ({"cannot_start": errno.ENOENT, "floods": 1}, "does nothing else"),
        ({"cannot_start": errno.ENOENT, "leaves_grandchild": True}, "does nothing else"),
        ({"cannot_start": errno.ENOENT, "ignores_term": True}, "does nothing else"),
        ({"open_end": True}, "needs a line"),
        ({"open_end": True, "lines": [5, ("progress", "1")]}, "needs a line"),
    ],
)
def test_impossible_script_is_refused_with_the_reason(fields, why):
    """It is a ValueError, at once."""
    with pytest.raises(ValueError, match=why):
        Script(**fields)


def test_only_lines_go_without_their_name():
    """Everything else is said by name."""
    with pytest.raises(TypeError):
        Script(["a"], 3)
