"""What a terminal may be shown of a text that a job wrote, and how progress is put there."""

from __future__ import annotations

import pytest

from jobcore import Progress
from jobcore.clock import to_datetime
from jobcore.terminal import _report, _share, without_controls


@pytest.mark.parametrize(
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

    assert (_share(progress), _report(progress)) == (share, report)
    assert (_share(None), _report(None)) == (None, None)
