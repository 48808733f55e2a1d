"""Wire: logs as bytes that a host sends on."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from jobcore import LogLine, wire
from jobcore.supervision import frames

TIME = 1_700_000_000_123_456_789


def test_ndjson_has_the_named_fields():
    """Each line is one JSON object with number, time, stream and message; partial where true."""
    lines = [
        LogLine(0, TIME, "output", b"a\n"),
        LogLine(1, TIME, "stderr", "é\U0001f600\r\n".encode()),
        LogLine(2, TIME + 10**9, "output", b"piece", partial=True),
        LogLine(3, TIME + 10**9, "system", b"said\n"),
    ]
    expected = [
        {"sequence": 0, "timestamp": "2023-11-14T22:13:20.123Z", "stream": "output",
         "message": "a"},
        {"sequence": 1, "timestamp": "2023-11-14T22:13:20.123Z", "stream": "stderr",
         "message": "é\U0001f600"},
        {"sequence": 2, "timestamp": "2023-11-14T22:13:21.123Z", "stream": "output",
         "message": "piece", "partial": True},
        {"sequence": 3, "timestamp": "2023-11-14T22:13:21.123Z", "stream": "system",
         "message": "said"},
    ]  # fmt: skip
    sent = list(wire.ndjson(lines))

    assert [json.loads(one) for one in sent] == expected
    assert [list(json.loads(one)) for one in sent] == [list(one) for one in expected]


@given(st.lists(st.binary(max_size=40)))
def test_ndjson_is_one_line_each_whatever_the_bytes(raws):
    """No byte of a job breaks the framing: one object, one line feed, valid UTF-8."""
    sent = list(wire.ndjson(LogLine(n, TIME, "output", raw) for n, raw in enumerate(raws)))

    for index, one in enumerate(sent):
        assert one.count(b"\n") == 1
        assert one.endswith(b"}\n")
        assert json.loads(one.decode("utf-8"))["sequence"] == index
    assert len(sent) == len(raws)


def test_line_separators_of_unicode_do_not_break_lines():
    """Characters that some readers take for line ends arrive inside the message."""
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"
    (one,) = wire.ndjson([LogLine(0, TIME, "output", text.encode() + b"\n")])

    assert json.loads(one)["message"] == text


def test_text_is_every_byte(jobs, scripted):
    """The text is what the command wrote: pieces join up, the last line gets no terminator."""
    run = scripted()
    run.write(b"a\n", b"\xff\r\n")
    run.write(b"long ", flags=frames.PARTIAL)
    run.write(b"line\n")
    run.write(b"no end", flags=frames.OPEN_END)

    assert b"".join(jobs.log_text(run.id)) == b"a\n\xff\r\nlong line\nno end"
    assert b"".join(jobs.log_text(run.id, 2)) == b"long line\nno end"
    assert [json.loads(one)["sequence"] for one in jobs.log_ndjson(run.id, 3)] == [3, 4]
    assert [json.loads(one).get("partial") for one in jobs.log_ndjson(run.id)] == [
        None, None, True, None, None,
    ]  # fmt: skip
