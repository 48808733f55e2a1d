"""Opcodes: an exception before any one bytecode of a call, as a signal handler may raise it."""

from __future__ import annotations

import dis
import itertools
import sys

import pytest

from tests.faults.rounds import sample

_CACHE, _PRECALL, _KW_NAMES = (dis.opmap.get(name) for name in ("CACHE", "PRECALL", "KW_NAMES"))

#: Since 3.14 this follows a branch and belongs to no `try`. Python checks for signals at calls,
#: at the start of a function and at the end of a loop's body, but never here.
_NOT_TAKEN = dis.opmap.get("NOT_TAKEN")

#: Python's own locks of modules and handlers: left behind there, they concern no job. And
#: what Hypothesis has the collector call, where an exception reaches no caller.
NOT_OURS = ("importlib", "logging", "weakref", "_weakrefset", "hypothesis")


class Opcodes:
    """
    Counts the bytecodes of a call, and raises before one of them.

    Args:
        last: The number of the bytecode before which it raises; None: it only counts.
        never: Files whose frames are left alone.
        error: What it raises.
        handler: What it calls instead, as a signal handler that raises nothing.
    """

    def __init__(self, last=None, never=(), error=KeyboardInterrupt, handler=None):
        self.number = 0
        self.where = None
        self._last = last
        self._never = (__file__, *never)
        self._error = error
        self._handler = handler
        self._left_alone = {}  # by file

    def __enter__(self):
        # On any frame, and before: in 3.12 only then does `settrace` look at bytecodes at all.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _call(self, frame, _event, _argument):
        name = frame.f_code.co_filename
        left_alone = self._left_alone.get(name)
        if left_alone is None:
            left_alone = any(part in name for part in (*self._never, *NOT_OURS))
            self._left_alone[name] = left_alone
        if left_alone:
            return None
        frame.f_trace = step = self._step_of(places_of(frame.f_code))
        frame.f_trace_opcodes, frame.f_trace_lines = True, False  # after f_trace, from 3.13 on
        return step

    def _step_of(self, places):
        """Return what is called before each bytecode of a frame; it is called a million times."""

        def step(frame, event, _argument):
            if event == "opcode" and frame.f_lasti in places:
                self.number += 1
                if self.number == self._last:
                    self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                    if self._handler is None:
                        raise self._error
                    self._handler()
            return step

        return step


#: The places of each code that was run, which is kept so that no other one gets its id.
_PLACES = {}


def places_of(code):
    """Return where in a code an exception can come before a bytecode."""
    found = _PLACES.get(id(code))
    if found is None:
        bytecodes = code.co_code
        places = {place for place in range(0, len(bytecodes), 2) if _can_raise(bytecodes, place)}
        found = _PLACES[id(code)] = (code, places)
    return found[1]


def _can_raise(code, place):
    """
    Tell whether an exception can come before the bytecode at a place.

    It cannot after Python 3.11 or 3.12 has set the argument names of the next call aside,
    because Python never checks for signals there. An exception would leave the names to
    another call, which would then read missing arguments.
    """
    if code[place] == _NOT_TAKEN:
        return False
    while place >= 2 and code[place - 2] in (_CACHE, _PRECALL):
        place -= 2
    return not (place >= 2 and _KW_NAMES is not None and code[place - 2] == _KW_NAMES)


#: Gives a test `most`, how many bytecodes it tries, and `least`, how many it must have reached.
#: The usual run tries some of all parts of a call, others with each seed; `-m faults` tries all.
sampled = pytest.mark.parametrize(
    ("most", "least"),
    [
        pytest.param(60, 30, id="smoke"),
        pytest.param(None, 200, id="full", marks=pytest.mark.faults),
    ],
)


def numbers_for(call, most, never=()):
    """Return the numbers of all bytecodes, endlessly, or of at most so many from all parts."""
    if most is None:
        return itertools.count(1)
    with Opcodes(never=never) as counted:
        call()
    return sample(range(1, counted.number + 1), most)


def every_bytecode(call, *, most=None, never=(), error=KeyboardInterrupt):
    """
    Interrupt a call before each of its bytecodes in turn; yield where, and what was raised.

    The number of bytecodes may differ from call to call, so this ends when a call
    came to its end.

    Args:
        call: What is called again and again.
        most: How many bytecodes are tried, spread over the call; None: each.
        never: Files whose frames are left alone.
        error: What is raised.
    """
    for number in numbers_for(call, most, never):
        with Opcodes(number, never, error) as opcodes:
            try:
                call()
            except error as raised:
                found = raised
            else:
                found = None
        if opcodes.where is None:
            return
        yield f"{number} at {opcodes.where}", found


def handler_at_every_bytecode(call, handler, *, most=None, never=()):
    """Make a call again and again, with a handler before the first, the next, ... bytecode."""
    for number in numbers_for(call, most, never):
        with Opcodes(number, never, handler=handler) as opcodes:
            call()
        if opcodes.where is None:
            return
        yield f"{number} at {opcodes.where}"
