"""What a terminal may be shown of a text that a job wrote."""

from __future__ import annotations

import pytest

from jobcore.terminal import without_controls


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
    ],
)
def test_no_control_reaches_a_terminal(text, shown):
    """Sequences go as a whole, other controls singly; tabs and all text stay."""
    assert without_controls(text) == shown
