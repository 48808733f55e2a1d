"""
The form in which a job reports its progress.

A report is `DONE[/TOTAL][ MESSAGE]`, such as `3/10 loading orders`, `0.25` or
`1200 rows`: decimals that are not negative, and a message for people. Spaces
around it, and the CR of a CRLF, are no part of it. The job writes one a line to
the descriptor named in `JOBCORE_PROGRESS_FD`, or as a line of its output that
begins with `jobcore:progress `.
"""

from __future__ import annotations

#: Names the descriptor, in the environment of the command.
VARIABLE = b"JOBCORE_PROGRESS_FD"

#: Always the same one, and a single digit: `dash` takes no longer one in `>&8`.
#: 3 to 7 are what scripts and `configure` use for themselves, 9 is what they `flock`.
DESCRIPTOR = 8

#: What a line of the output begins with that is a report, and no line of the log.
PREFIX = b"jobcore:progress "

#: Characters of a message. A guess: some lines of a terminal, and nothing that a
#: listing of many jobs would feel.
MAX_MESSAGE = 1000

# Far more than a float holds exactly, and far less than it takes to be infinite.
_MAX_DIGITS = 32


def normalize(line: bytes) -> bytes | None:
    """Return the report that a line is, its message a text of bounded length; None: it is none."""
    numbers, message = _split(line)
    if _read(numbers) is None:
        return None
    text = shorten(message.decode("utf-8", "replace"))
    return numbers + b" " + text.encode("utf-8") if text else numbers


def parse(line: bytes) -> tuple[float, float | None, str | None] | None:
    """Return what is done, of how much, and the message of the report; None: it is none."""
    numbers, message = _split(line)
    read = _read(numbers)
    if read is None:
        return None
    return *read, shorten(message.decode("utf-8", "replace")) or None


def shorten(message: str) -> str:
    """Return a message as it is kept: one line, of bounded length."""
    # SQL functions and C programs take a NUL for the end of a text.
    return " ".join(message.splitlines()).strip().replace("\0", "\ufffd")[:MAX_MESSAGE]


def _split(line: bytes) -> tuple[bytes, bytes]:
    numbers, _, message = line.strip().partition(b" ")
    return numbers, message


def _read(numbers: bytes) -> tuple[float, float | None] | None:
    first, slash, second = numbers.partition(b"/")
    done = _number(first)
    total = _number(second) if slash else None
    if done is None or (slash and total is None):
        return None
    return done, total


def _number(word: bytes) -> float | None:
    whole, _, fraction = word.partition(b".")
    # Digits alone: what `float` takes beside them are signs, exponents and infinities.
    if len(word) > _MAX_DIGITS or not (whole + fraction).isdigit():
        return None
    return float(word)
