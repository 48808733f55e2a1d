"""
The format in which a job reports its progress.

A report is `DONE[/TOTAL][ MESSAGE]`, such as `3/10 loading orders`, `0.25` or `1200 rows`:
non-negative decimal numbers and a message for people. Surrounding white space, including the
CR of a CRLF, is ignored. The job writes one report per line, either to the descriptor whose
number is in `JOBCORE_PROGRESS_FD`, or to its output, with the prefix `jobcore:progress `.
"""

from __future__ import annotations

#: The environment variable with the number of the descriptor.
VARIABLE = b"JOBCORE_PROGRESS_FD"

#: A constant with one digit, because `dash` accepts only one digit in `>&8`. Scripts and
#: `configure` use 3 to 7 for themselves, and often 9 for `flock`.
DESCRIPTOR = 8

#: A line of output with this prefix is a report, and not a line of the log.
PREFIX = b"jobcore:progress "

#: Maximum characters of a message: a few lines of a terminal, which does not slow down
#: listings. An estimate.
MAX_MESSAGE = 1000

# Far more digits than a float holds exactly, and far too few for infinity.
_MAX_DIGITS = 32


def normalize(line: bytes) -> bytes | None:
    """Return the report in a line, with its message cleaned and shortened; None: it is invalid."""
    numbers, message = _split(line)
    if _read(numbers) is None:
        return None
    text = shorten(message.decode("utf-8", "replace"))
    return numbers + b" " + text.encode("utf-8") if text else numbers


def parse(line: bytes) -> tuple[float, float | None, str | None] | None:
    """Return done, total and message of a report; None: the line is not a valid report."""
    numbers, message = _split(line)
    read = _read(numbers)
    if read is None:
        return None
    return *read, shorten(message.decode("utf-8", "replace")) or None


def shorten(message: str) -> str:
    """Return a message in stored form: one line, at most `MAX_MESSAGE` characters."""
    # Replace NUL, which SQL functions and C programs take for the end of a text.
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
    # Only digits and a point: `float` would also accept signs, exponents and infinities.
    if len(word) > _MAX_DIGITS or not (whole + fraction).isdigit():
        return None
    return float(word)
