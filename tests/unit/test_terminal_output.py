"""What a terminal may be shown of a text that a job wrote, and how progress is put there."""

from __future__ import annotations

import io
import os
import pty

import pytest

from jobcore import Progress
from jobcore.cli import output
from jobcore.cli.log_printer import PipeWriter, RowWriter, row_of
from jobcore.cli.output import _report, without_controls
from jobcore.clock import to_datetime
from jobcore.models import LogLine
from tests.cases import each


@each(
    ("text", "shown"),
    [
        ("plain \t text, ünïcode ✓", "plain \t text, ünïcode ✓"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPdevice\x1b\\after", "after"),
        ("\x1b(Bcharset\x1b7\x1bc", "charset"),
        ("over\rwritten\b\x7f", "overwritten"),
        ("c1 \x9b31m \x85", "c1 31m "),
        ("\x1b[31", "31"),  # a piece of a sequence that went on in the next line
        ("\x1b]never ended", "never ended"),
        ("\x1b\x1b[31m", ""),
        ("byte \udcff", "byte ?"),
        ("\x1b]52;c;cm0=\x07after \x1b]52;c;cm0=\x1b\\all", "after all"),
        ("\x1b]52;c;cm0=\x9cnot taken with it\x07", "not taken with it"),
        ("\x9d0;title\x9c \x90q\x9c", "0;title q"),  # no more is done than shown
        ("\x1b[?1049h\x1b[38;2;1;2;3m\x1b[ q\x1b[>c\x1b[!p", ""),
        ("\x1bX\x1b^\x1b_a\x1b\\b", "b"),
        ("bells\x07\x07 and\x05 nulls\0", "bells and nulls"),
        ("\u202eturned\u202c \u2066apart\u2069 \u202a\u202b\u202d\u2067\u2068", "turned apart "),
        ("\u05d0\u200f\u0627\u200e zero\u200dwidth", "\u05d0\u200f\u0627\u200e zero\u200dwidth"),
    ],
)
def test_no_control_reaches_a_terminal(text, shown):
    """Sequences go as a whole, other controls singly; tabs and all text stay."""
    assert without_controls(text) == shown


@pytest.mark.parametrize(
    ("said", "share", "report"),
    [
        ((3, 10, "loading orders"), "30%", "3/10 loading orders"),
        ((2.5, None, None), "2.5", "2.5"),
        ((1234567, None, "rows"), "1234567", "1234567 rows"),
        ((999, 1000, None), "99%", "999/1000"),
        ((12, 10, None), "120%", "12/10"),
        ((3, 0, None), "3", "3/0"),
        ((1e308, 5e-324, None), "999%", "1e+308/4.94065645841247e-324"),
    ],
)
def test_progress_in_words(said, share, report):
    """Progress is a percentage where there is a total, else the number; in full as reported."""
    done, total, message = said
    progress = Progress(done=done, total=total, message=message, at=to_datetime(0))

    assert (output.share(progress), _report(progress)) == (share, report)
    assert (output.share(None), _report(None)) == (None, None)


@each(
    ("text", "row"),
    [
        ("plain", "plain"),
        ("10%\r20%\r100%", "100%"),
        ("10%\r20%\r", "20%"),
        ("a long text\rshort", "shortg text"),
        ("a long text\rshort\x1b[K", "short"),
        ("a long text\x1b[K\rshort\x1b[0K\rx", "xhort"),
        ("a long text\r\x1b[2Kx", "x"),
        ("\x1b[31mred\x1b[0m text\rb", "bed text"),
        ("\r\r", ""),
        ("over\rwritten\b\x7f", "written"),
    ],
)
def test_carriage_return_restarts_the_row(text, row):
    """What is shown is what a terminal would show, without any control."""
    assert row_of(text) == row


def unfinished(raw, stream="output"):
    return LogLine(None, 0, stream, raw, partial=True)


def numbered(raw, stream="output", *, partial=False):
    return LogLine(0, 0, stream, raw, partial=partial)


#: Lines as they come, and what a row of a terminal and a pipe get.
COMING = [
    ([unfinished(b"ask? "), unfinished(b"ask? y"), numbered(b"ask? yes\n")], "ask? yes\n"),
    ([unfinished(b"1%\r"), unfinished(b"1%\r2%\r"), numbered(b"1%\r2%\r3%\n")],
     "1%\r2%\x1b[K\r3%\x1b[K\n"),
    # A line of jobcore's own has made a piece of it.
    ([unfinished(b"ask? "), numbered(b"ask? ", partial=True), numbered(b"said\n", "system"),
      numbered(b"no\n")], "ask? \nsaid\nno\n"),
    # One of the other stream is written in its place, and it comes again.
    ([unfinished(b"ask? ", "stdout"), numbered(b"warning\n", "stderr"),
      unfinished(b"ask? ", "stdout"), numbered(b"ask? yes\n", "stdout")],
     "ask? \r\x1b[Kwarning\nask? yes\n"),
    # Pieces go on in their row.
    ([numbered(b"half ", partial=True), unfinished(b"line"), numbered(b"line.\n")],
     "half line.\n"),
    ([numbered(b"50%\r", partial=True), unfinished(b"60%\r"), numbered(b"60%\r100%\n")],
     "50%\r60%\x1b[K\r100%\x1b[K\n"),
    ([numbered(b"no end")], "no end"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "row"), COMING)
def test_terminal_draws_an_unfinished_line_again(lines, row):
    """Only what is new of it, or the whole row where that has changed."""
    assert drawn_on_terminal(lines) == row


def test_bar_that_is_wider_than_the_terminal_is_cut():
    """Else it would wrap, and could not be drawn again."""
    assert drawn_on_terminal([unfinished(b"\r" + b"x" * 200)]) == "x" * 79


@pytest.mark.parametrize(
    ("bar", "row"),
    [
        ("\u2588" * 200, "\u2588" * 79),
        ("\u6f22" * 60, "\u6f22" * 39 + " "),  # two columns each
        ("\u6f22" * 39 + "x", "\u6f22" * 39 + "x"),
        ("\U0001f600" * 60, "\U0001f600" * 39 + " "),
        ("e\u0301" * 79, "e\u0301" * 79),  # one column for two characters
    ],
)
def test_bar_of_other_letters_is_cut_by_its_columns(bar, row):
    """Letters may take two columns, or none."""
    assert drawn_on_terminal([unfinished(b"\r" + bar.encode())]) == row


@pytest.mark.parametrize("end", ["", "\r"])
def test_pieces_longer_than_a_row_are_drawn_in_bounded_memory(end):
    """A bar that was cut goes on in its row; a long line just goes on."""
    piece = ("x" * 50 + end).encode() * 1000
    lines = [numbered(piece, partial=True), unfinished(b"y" * 60), numbered(b"y" * 61 + b"\n")]
    shown = drawn_on_terminal(lines)

    assert shown == ("x" * 50 + "\r" + "y" * 60 + "\x1b[K" if end else "x" * 50_000 + "y" * 60) + (
        "y\n"
    )


def drawn_on_terminal(lines):
    """Return what a terminal of 80 columns gets of these lines."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "wb", buffering=0) as out:
        row, shown = RowWriter(), b""
        for line in lines:
            part = io.BytesIO()
            part.fileno = out.fileno
            row.write(line, part)
            shown += part.getvalue()
    os.close(ours)
    return shown.decode()


@pytest.mark.parametrize("lines", [lines for lines, _ in COMING])
def test_pipe_gets_each_byte_once(lines):
    """In the order in which they came."""
    pipe, out = PipeWriter(), io.BytesIO()
    for line in lines:
        pipe.write(line, out)
    whole = b"".join(line.raw for line in lines if not line.unfinished)

    assert sorted(out.getvalue()) == sorted(whole)
    if len({line.stream for line in lines}) == 1:
        assert out.getvalue() == whole
