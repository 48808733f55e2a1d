"""Masks: what a redactor has to return for values without escapes, worked out plainly."""

from __future__ import annotations


def masked(data, values):
    """Return `data` with every byte of a value masked; values that overlap share a mask."""
    found = sorted(
        (at, at + len(value))
        for value in values
        for at in range(len(data))
        if data.startswith(value, at)
    )
    pieces, position = [], 0
    for begin, end in found:
        if begin >= position:
            pieces += (data[position:begin], b"***")
        position = max(position, end)
    return b"".join([*pieces, data[position:]])
