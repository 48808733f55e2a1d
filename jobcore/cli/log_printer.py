"""
Prints the lines of a log while it grows.

A terminal shows unfinished lines in place and no control characters. A pipe or a file gets each
byte once.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from jobcore.cli import output

if TYPE_CHECKING:
    from jobcore.models import LogLine

#: Escape sequences that erase the row from the cursor on.
_ERASES_ROW = re.compile(r"\x1b\[[02]?K")
#: Number of characters kept for drawing a row again; more than the width of any terminal.
_LONGEST_ROW = 4096
#: Seconds after which unfinished lines are printed again below lines that do not end.
_REDRAW = 0.25


class LogPrinter:
    """
    Prints log lines: byte for byte, cleaned for a terminal, or as JSON.

    An unfinished line is printed as far as it exists; later only its new part is printed. On a
    terminal a carriage return restarts the line. JSON output omits unfinished lines.

    Args:
        sequence: The number of the first line.
        apart: Print `stderr` and `system` lines on stderr; False: print all on stdout.
        ndjson: Print one JSON object per line; on a terminal, escape control characters.

    Attributes:
        next_sequence: The number after the last numbered line that was printed.
    """

    def __init__(self, sequence: int = 0, *, apart: bool = False, ndjson: bool = False) -> None:
        self.next_sequence = sequence
        self._unfinished: dict[str, LogLine] = {}  # by stream, until it has a number
        self._is_below = True  # whether unfinished lines were printed after all others
        self._redraw_at = 0.0
        self._apart = apart
        self._ndjson = ndjson
        # Not sys.stdout.buffer: with PYTHONUNBUFFERED, which every job has by default, it is
        # unbuffered, and writes to it may be short.
        self._out = output.binary(sys.stdout)
        self._err = output.binary(sys.stderr)
        # If both are terminals, they are the same one, so they share a row.
        row = RowWriter(output.encoding_of(sys.stdout if self._out.isatty() else sys.stderr))
        #: Whether the bytes are printed as they are, to one place.
        self._is_plain = not (apart or self._out.isatty())
        self._writers = {
            out: row.write if out.isatty() else PipeWriter().write for out in (self._out, self._err)
        }

    def print(self, lines: Iterable[LogLine]) -> None:
        """Print lines, and flush them before returning."""
        if self._is_plain:
            lines = self._print_groups(lines)
        if self._ndjson:
            from jobcore import wire  # noqa: PLC0415 - only needed for JSON

            objects = wire.ndjson(self._noted(lines))
            if self._out.isatty():
                objects = (
                    f"{output.json_shown(one.decode().rstrip())}\n".encode() for one in objects
                )
            self._out.writelines(objects)
        else:
            for line in self._noted(lines):
                self._print(line)
                if line.sequence is None:
                    self._unfinished[line.stream] = line
                    self._is_plain = False
                    self._out.flush()
                elif self._unfinished:
                    self._note_finished(line)
        self.flush()

    def _print_groups(self, lines: Iterable[LogLine]) -> Iterable[LogLine]:
        """Print the lines that come in groups, and return the others."""
        from jobcore.log_lines import taken_in_groups  # noqa: PLC0415 - not needed for other output

        taken = taken_in_groups(lines)
        if taken is None:
            return lines
        groups, end = taken
        form = None
        if self._ndjson:
            from jobcore.wire.log_forms import NdjsonForm  # noqa: PLC0415 - only needed for JSON

            form = NdjsonForm()
        for group in groups:
            self._out.writelines((group.raw,) if form is None else form.encode_group(group))
            self.next_sequence = group.end
        return end

    def flush(self) -> None:
        """Print unfinished lines again if others were printed after them, and flush all."""
        if self._unfinished and not self._is_below:
            self._is_below = True
            for line in self._unfinished.values():
                self._print(line)
        self._out.flush()

    def _print(self, line: LogLine) -> None:
        out = self._out
        if self._apart and line.stream in ("stderr", "system"):
            out.flush()  # keep the order of lines on stdout and stderr
            out = self._err
        self._writers[out](line, out)
        if out is self._err:
            out.flush()

    def _note_finished(self, line: LogLine) -> None:
        """Forget the unfinished lines that a numbered line replaces, and print others below it."""
        if line.stream == "system":
            self._unfinished.clear()
        else:
            self._unfinished.pop(line.stream, None)
        self._is_below = False
        now = time.monotonic()
        if now > self._redraw_at:
            self._redraw_at = now + _REDRAW
            self.flush()

    def _noted(self, lines: Iterable[LogLine]) -> Iterator[LogLine]:
        for line in lines:
            yield line
            if line.sequence is not None:
                self.next_sequence = line.sequence + 1


class PipeWriter:
    """Prints each byte once, although an unfinished line comes again when it has grown."""

    def __init__(self) -> None:
        self._printed: dict[str, bytes] = {}  # by stream, printed text without a number

    def write(self, line: LogLine, out: BinaryIO) -> None:
        """Print the new part of a line."""
        if not self._printed and not line.unfinished:
            out.write(line.raw)
            return
        raw, printed = line.raw, self._printed.pop(line.stream, b"")
        if raw.startswith(printed):
            out.write(raw[len(printed) :])
            left = b""
        elif printed.startswith(raw):
            left = printed[len(raw) :]
        else:
            out.write(raw)
            left = b""
        if line.unfinished:
            self._printed[line.stream] = raw + left
        elif left and line.partial:
            self._printed[line.stream] = left


class RowWriter:
    """
    The row of a terminal that contains the cursor.

    Args:
        encoding: The terminal's encoding; other characters are shown as escapes.

    Attributes:
        text: The text in the row.
        stream: The stream of that text.
    """

    def __init__(self, encoding: str = "utf-8") -> None:
        self.text = ""
        self.stream = ""
        self._encoding = encoding
        self._pieces = ""  # numbered pieces in the row; text after them may be replaced

    def write(self, line: LogLine, out: BinaryIO) -> None:
        """Print a line in place of the unfinished text that it replaces."""
        if self.text and line.stream != self.stream:
            # Erase unfinished text, which comes again after this line; keep numbered pieces.
            out.write(b"\n" if self._pieces else b"\r\x1b[K")
            self.text = self._pieces = ""
        self.stream = line.stream
        whole = self._pieces + self._bytes(line.text).decode(self._encoding)
        text = row_of(whole)
        if line.unfinished and "\r" in whole:
            # Cut it to the width, because a row that has wrapped cannot be drawn again.
            text = _cut(text, (os.get_terminal_size(out.fileno()).columns or 80) - 1)
        if text.startswith(self.text):
            out.write(self._bytes(text[len(self.text) :]))
        else:
            out.write(b"\r" + self._bytes(text) + b"\x1b[K")
        self.text = text
        if line.raw.endswith(b"\n"):
            out.write(b"\n")
            self.text = self._pieces = ""
        elif not line.unfinished:
            self._pieces = whole[-_LONGEST_ROW:]
            if len(whole) > _LONGEST_ROW and "\r" not in self._pieces:
                self.text = self._pieces = ""  # the row has wrapped: just append the rest

    def _bytes(self, text: str) -> bytes:
        return text.encode(self._encoding, "backslashreplace")


def _cut(text: str, columns: int) -> str:
    """Return the beginning of a text that takes at most so many columns of a terminal."""
    if text.isascii():
        return text[:columns]
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - for few bars

    return text if cell_len(text) <= columns else set_cell_size(text, columns)


def row_of(text: str) -> str:
    """
    Return the text that a terminal shows for a line, without control characters.

    After a carriage return, text overwrites the row from its beginning.
    """
    *begun, last = text.split("\r")
    shown = output.without_controls(last)
    while begun and not _ERASES_ROW.search(last):
        last = begun.pop()
        shown += output.without_controls(last)[len(shown) :]
    return shown
