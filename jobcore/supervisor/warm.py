"""
The supervisor's end of its warm interpreter, which forks a process for each call of a function.

The interpreter is a child of the supervisor, and runs no code of a job itself. A process that it
forks becomes a child of the supervisor, like any command, and waits there until it may begin. If
the interpreter does not answer, it is killed, and the supervisor starts the call as a program.
"""

from __future__ import annotations

import _socket
import marshal
import os
import select
import struct
import time

from jobcore.embedding import failpoints
from jobcore.supervisor import inheritance, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from socket import socket as Socket  # noqa: N812 - the type of both; `_socket` is cheap to import

    from jobcore.supervisor.spawn import Program, Start
else:
    import _signal

#: The descriptor of the interpreter's end of the socket.
DESCRIPTOR = 3
#: Variables with this prefix belong to one job. All others must be those that the interpreter has.
OF_JOB = b"JOBCORE_"
#: The variable by which orphans of a job are found. The interpreter has it with a value as long
#: as a job's, and a process that it forks writes the job's over it.
COOKIE = b"JOBCORE_RUN"
PLACEHOLDER = b"-" * 32
#: The name of an interpreter's process, which `ps` shows.
NAME = b"jobcore-warm"
#: The version of these messages: jobcore may have been upgraded on disk below a supervisor.
VERSION = b"1"

# The messages of the interpreter: one letter, and a text or a pid.
#: It has loaded the modules; the version follows.
READY = b"R"
#: A process was forked; its pid follows.
FORKED = b"F"
#: The process is a child of the supervisor now.
HANDED_OVER = b"H"
#: It cannot make this call. It ends if another interpreter is of more use.
REFUSED = b"N"
#: It can make no calls; the reason follows, in words for the job's log. It ends.
UNUSABLE = b"U"

#: The message to a process that was forked: it may begin.
GO = b"!"
#: The message to the interpreter, with the descriptors of a call.
CALL = b"C"

_SIZE = 4096  # bytes of the longest message
_PATIENCE = 2.0  # seconds for an answer; a fork takes a millisecond, on a busy machine a hundred
_LOOK_MS = 1000  # milliseconds until another look for an interpreter that ends
_MOST_SKIPPED = 64  # calls without an interpreter after several that were of no use


class Warm:
    """
    The warm interpreter of this supervisor, if it has one.

    Attributes:
        children: The pids of interpreters that are not reaped. They are no part of any job.
    """

    def __init__(self) -> None:
        self.children: set[int] = set()
        self._socket: Socket | None = None
        self._argv: list[bytes] = []
        self._pid = 0
        self._inheritance: bytes | None = None
        self._ready = False
        self._served = False
        self._why = ""  # why it was unusable, until that is told
        self._told: set[str] = set()
        self._skip = 0  # how many calls to let pass before the next start
        self._after = 1  # the same after the next interpreter that was of no use

    def wait(self, poll: select.poll, milliseconds: int | None) -> set[int]:
        """Poll with `poll` and for the interpreter's reports; return what of `poll` is ready."""
        watched = -1 if self._socket is None else self._socket.fileno()
        if watched >= 0:
            poll.register(watched, select.POLLIN)
        # No descriptor reports the end of an interpreter that has closed its socket.
        is_ending = self._socket is None and bool(self.children)
        ready = {descriptor for descriptor, _ in poll.poll(_LOOK_MS if is_ending else milliseconds)}
        if watched >= 0:
            poll.unregister(watched)  # it may be another one in the next round
        self.listen()
        self._reap()
        return ready

    def fork_or_start(self, program: Program, start: Start) -> int:
        """
        Fork the process of a call from the interpreter, or else start a fresh one for it.

        In that case a warm one is started as well, for later calls like this one. Nothing waits
        for it.

        Raises:
            OSError: No process could be created.
        """
        try:
            pid = self.fork(program, start)
        except OSError:
            pid = None  # no descriptor is left; the other way needs fewer
        if pid is not None:
            return pid
        pid = spawn.fork(program, start)
        try:
            self._start_for(program, start.oom_score)
        except OSError:
            self._skip = self._after  # no descriptor, no memory or no process is left
        return pid

    def _start_for(self, program: Program, oom_score: bytes | None) -> None:
        if self._socket is not None and self._argv != program.warm:
            self._end()
        if self._socket is not None or program.warm is None:
            return
        if self._skip > 0:
            self._skip -= 1
            return
        self._inheritance = inheritance.read()
        if self._inheritance is not None:
            self._start(program.warm, program, oom_score)

    def _start(self, argv: list[bytes], call: Program, oom_score: bytes | None) -> None:
        env = {name: value for name, value in call.env.items() if not name.startswith(OF_JOB)}
        env[COOKIE] = PLACEHOLDER
        program = spawn.Program(argv, env, b"/", None, 0o077, separate_streams=False)
        assert call.stdin is not None  # noqa: S101 - for the type checker alone
        payload = call.stdin[1]
        opened: list[int] = []
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            stdin = spawn.make_stdin(payload, opened)
            report, report_writer = os.pipe2(os.O_CLOEXEC)
            opened += (report, report_writer)
            given = {0: stdin, 1: 1, 2: 2, DESCRIPTOR: theirs.fileno()}
            pid = spawn.fork(program, spawn.Start(given, report_writer, oom_score, 0))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            for descriptor in opened:
                os.close(descriptor)
        self.children.add(pid)
        self._socket, self._pid, self._argv = ours, pid, argv  # type: ignore[assignment]
        self._ready = self._served = False
        if failpoints.armed:
            failpoints.reach(failpoints.WARM_STARTED)

    def fork(self, program: Program, start: Start) -> int | None:
        """
        Fork a process that makes a call; None: none was forked that will ever begin.

        Returns:
            Its pid. It is a child of this process, and becomes what `spawn.fork` makes.

        Raises:
            OSError: No descriptor or no memory is left.
        """
        self.listen()
        if not self._ready or self._argv != program.warm:
            return None
        if inheritance.read() != self._inheritance:
            self._end()  # this process was changed, such as its limits, and the other one was not
            return None
        go, go_writer = os.pipe2(os.O_CLOEXEC)
        opened = [go, go_writer]
        try:
            body = spawn.make_stdin(_body(program, start), opened)
            pid = self._ask([body, go, start.report, *start.given.values()])
            if pid is not None:
                os.write(go_writer, GO)
                self._served = True
                self._after = 1
                if failpoints.armed:
                    failpoints.reach(failpoints.WARM_SENT_OFF)
        finally:
            for descriptor in opened:
                os.close(descriptor)
        return pid

    def _ask(self, descriptors: list[int]) -> int | None:
        assert self._socket is not None  # noqa: S101 - for the type checker alone
        rights = struct.pack(f"{len(descriptors)}i", *descriptors)
        try:
            self._socket.sendmsg(
                [CALL],
                [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)],
                _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL,
            )
        except OSError:
            self._end()  # it has just ended, or does not read what it is sent
            return None
        if failpoints.armed:
            failpoints.reach(failpoints.WARM_ASKED)
        deadline = time.monotonic() + _PATIENCE
        pid = 0
        while self._socket is not None:
            kind, rest = self._receive(deadline)
            if kind == FORKED:
                pid = int(rest)
            elif kind == HANDED_OVER and pid:
                return pid
            elif kind == REFUSED:
                return None
            elif kind != b"":
                break
        # It may have forked one all the same. That will not begin, because its pipe is closed.
        self._end()
        return None

    def listen(self) -> None:
        """Read what the interpreter has reported, without waiting."""
        while self._socket is not None:
            kind, rest = self._receive(0)
            if kind == READY and rest == VERSION:
                self._ready = True
            elif kind == UNUSABLE:
                self._why = rest.decode("utf-8", "replace")
            elif kind == b"":
                return
            else:
                self._end()

    def _receive(self, deadline: float) -> tuple[bytes, bytes]:
        """Return the next message by `deadline`; an empty kind: none, or the interpreter ended."""
        assert self._socket is not None  # noqa: S101 - for the type checker alone
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        left = deadline - time.monotonic() if deadline else 0
        if not poll.poll(max(0, left) * 1000):
            if deadline:
                self._end()
            return b"", b""
        try:
            data = self._socket.recv(_SIZE)
        except BlockingIOError:
            return b"", b""
        except OSError:
            data = b""
        if not data:
            self._end()
        return data[:1], data[1:]

    def reason(self) -> str:
        """Return once why there is no warm interpreter, in words for a log; else an empty text."""
        why, self._why = self._why, ""
        if not why or why in self._told:
            return ""
        self._told.add(why)
        return why

    def _reap(self) -> None:
        for pid in tuple(self.children):
            try:
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            except ChildProcessError:
                pass  # it was reaped with the processes of a job
            self.children.discard(pid)

    def _end(self) -> None:
        """Kill the interpreter, and go without one for a while if it was of no use."""
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        self._ready = False
        if self._pid in self.children:
            os.kill(self._pid, _signal.SIGKILL)  # not reaped, so the pid is its own
        self._reap()
        if not self._served:
            self._skip = self._after
            self._after = min(2 * self._after, _MOST_SKIPPED)


def _body(program: Program, start: Start) -> bytes:
    """Return what the process needs to know of a call; the descriptors are those of `given`."""
    return marshal.dumps(
        {
            "env": program.env,
            "cwd": program.cwd,
            "umask": program.umask,
            "given": list(start.given),
            "parent": start.parent,
            "oom_score": start.oom_score,
        },
        2,
    )
