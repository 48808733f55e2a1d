"""Scripts: what a scripted command does, as lines, pauses and an end."""

# ruff: noqa: TRY004 - one error class for every wrong argument, as everywhere in jobcore

from __future__ import annotations

import errno
import math
import signal as signals
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from jobcore import checks

#: A line, a line of a given stream, text without a newline, a progress report, JSON that is handed
#: over, or a pause in seconds.
Part = (
    str
    | bytes
    | float
    | tuple[Literal["stdout", "stderr", "unfinished", "progress", "result", "state"], str | bytes]
)
#: The streams that are not lines of the log.
_APART = ("unfinished", "progress", "result", "state")

#: Signals that never end a process: by default they are ignored, stop it or continue it.
_HARMLESS = frozenset(
    (
        signals.SIGCHLD,
        signals.SIGCONT,
        signals.SIGSTOP,
        signals.SIGTSTP,
        signals.SIGTTIN,
        signals.SIGTTOU,
        signals.SIGURG,
        signals.SIGWINCH,
    )
)


@dataclass(frozen=True)
class Script:
    """
    What a scripted command does, in order. A value object; its arguments are checked at once.

        Script(["extract", 5, "load", ("stderr", "no such table")], exit_code=1)

    This writes `extract`, 5 seconds later the other two lines, and exits with 1.

    Args:
        lines: The steps. A `str` or `bytes` is a line; a missing newline is added. A number
            is a pause, in seconds. `("stderr", line)` goes to that stream, which differs
            from stdout only with `Command(separate_streams=True)`.
            `("unfinished", "Continue? [y/N] ")` is written to stdout unchanged, without a
            newline, like a prompt or a progress bar. `("progress", "3/10 loading")` is a
            progress report, written to the descriptor for reports. `("result", '{"rows": 3}')`
            is JSON for the descriptor in `JOBCORE_RESULT_FD`, and `("state", ...)` for the one
            in `JOBCORE_STATE_FD`, if the job has that descriptor.
        exit_code: The exit code after the last step, 0 to 255.
        signal: The number of the signal that ends the command after the last step, instead.
        hangs: The command never ends by itself; only a stop, a timeout or a kill ends it.
        ignores_term: The command, and the process that it leaves, ignore SIGTERM and any other
            signal of a stop. They end by themselves, or are killed after the grace.
        cannot_start: The errno with which the command fails to start. The exit code is 127
            for `errno.ENOENT`, else 126.
        leaves_grandchild: The command leaves a process behind that would run for ever. A
            second after the command's end it gets SIGTERM, and if it ignores that, SIGKILL
            `Command.linger` seconds later.
        floods: Number of lines, `flood 0` and so on, to write at once after `lines`.
        dies: After the last step the supervisor dies as by SIGKILL, and the command with it.
            The job becomes `lost`, with the lines written before.
        open_end: The last line has no newline.

    Raises:
        ValueError: The script is not possible; the message says why.
    """

    lines: Sequence[Part] = ()
    _: KW_ONLY
    exit_code: int = 0
    signal: int | None = None
    hangs: bool = False
    ignores_term: bool = False
    cannot_start: int | None = None
    leaves_grandchild: bool = False
    floods: int = 0
    dies: bool = False
    open_end: bool = False

    def __post_init__(self) -> None:
        """Check the arguments, and copy `lines`."""
        if isinstance(self.lines, (str, bytes)) or not isinstance(self.lines, Sequence):
            raise ValueError(f"lines must be a list of lines and pauses, not {self.lines!r}")
        object.__setattr__(self, "lines", tuple(_checked_part(part) for part in self.lines))
        checks.integer(self.exit_code, "exit_code", 0, 255, ValueError)
        # An upper limit: so many lines are a log of 300 MB.
        checks.integer(self.floods, "floods", 0, 10_000_000, ValueError)
        if self.signal is not None:
            _require_signal(self.signal)
        if self.cannot_start is not None and (
            isinstance(self.cannot_start, bool) or self.cannot_start not in errno.errorcode
        ):
            raise ValueError(f"cannot_start must be an errno, not {self.cannot_start!r}")
        self._require_one_end()

    def _require_one_end(self) -> None:
        ends = {
            "exit_code": self.exit_code != 0,
            "signal": self.signal is not None,
            "hangs": self.hangs,
            "cannot_start": self.cannot_start is not None,
            "dies": self.dies,
        }
        given = [name for name, is_given in ends.items() if is_given]
        if len(given) > 1:
            raise ValueError(f"a script can have one end, not {' and '.join(given)}")
        if self.cannot_start is not None and (
            self.lines or self.floods or self.leaves_grandchild or self.ignores_term
        ):
            raise ValueError("a command that cannot be started does nothing else")
        if self.open_end and self.floods == 0 and not any(map(_is_line, self.lines)):
            raise ValueError("a script needs a line to leave it unfinished")

    @property
    def duration(self) -> float:
        """The seconds until the script's end, if it is not stopped before: the sum of pauses."""
        pauses = (part for part in self.lines if isinstance(part, (int, float)))
        return math.inf if self.hangs else float(sum(pauses))

    def parts(self) -> Iterator[float | tuple[str, bytes]]:
        """Yield pauses in seconds, and writes as stream and bytes, including the newline."""
        last = self._last_line()
        for number, part in enumerate(self.lines):
            if isinstance(part, (int, float)):
                yield float(part)
            else:
                stream, line = part if isinstance(part, tuple) else ("stdout", part)
                data = line.encode() if isinstance(line, str) else line
                if stream == "unfinished":
                    yield "stdout", data
                    continue
                data = data.removesuffix(b"\n")
                yield stream, data if number == last else data + b"\n"
        for first in range(0, self.floods, _FLOOD_AT_ONCE):
            end = min(first + _FLOOD_AT_ONCE, self.floods)
            data = b"".join(b"flood %d\n" % number for number in range(first, end))
            yield "stdout", data[:-1] if self.open_end and end == self.floods else data

    def _last_line(self) -> int | None:
        """Return the index of the line without a newline, or None."""
        if not self.open_end or self.floods:
            return None
        return max(number for number, part in enumerate(self.lines) if _is_line(part))


_FLOOD_AT_ONCE = 4096  # lines; some 50 KB, which is about the capacity of a pipe


def _is_line(part: Part) -> bool:
    stream = part[0] if isinstance(part, tuple) else "stdout"
    return not isinstance(part, (int, float)) and stream not in _APART


def _checked_part(part: object) -> Part:
    """
    Return a step of a script, checked.

    Raises:
        ValueError: It is neither a line nor a pause.
    """
    if isinstance(part, bool):
        raise ValueError(f"a part of a script must be a line or a pause, not {part!r}")
    if isinstance(part, (int, float)):
        if not 0 <= part < math.inf:
            raise ValueError(f"a pause must be a number of seconds, 0 or more, not {part!r}")
        return part
    if isinstance(part, (str, bytes)):
        return _checked_line(part)
    if isinstance(part, tuple) and len(part) == 2:
        stream, line = part
        if stream not in ("stdout", "stderr", *_APART):
            raise ValueError(
                'a stream must be "stdout", "stderr", "unfinished", "progress", "result" or '
                f'"state", not {stream!r}'
            )
        return stream, _checked_line(line)
    raise ValueError(f"a part of a script must be a line or a pause, not {part!r}")


def _checked_line(line: object) -> str | bytes:
    if not isinstance(line, (str, bytes)):
        raise ValueError(f"a line must be str or bytes, not {line!r}")
    if isinstance(line, str):
        try:
            line.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"a line cannot be encoded: {line!r}; pass bytes") from error
    return line


def _require_signal(number: object) -> None:
    if isinstance(number, bool) or number not in signals.valid_signals():
        raise ValueError(f"signal must be the number of a signal, not {number!r}")
    if number in _HARMLESS:
        raise ValueError(f"no process ends by {signals.Signals(int(number)).name}")  # type: ignore[call-overload]
