"""Progress: what is a report, what becomes of it, and how few of many are written."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcore.supervisor import frames, progress
from jobcore.supervisor.capture import MAX_REPORT, REPORT_EVERY, ProgressReader
from jobcore.supervisor.redaction import Values
from tests.cases import each

REPORTS = {
    b"3": (3.0, None, None),
    b"3/10": (3.0, 10.0, None),
    b"3/10 loading orders": (3.0, 10.0, "loading orders"),
    b"0.25": (0.25, None, None),
    b".5/1.": (0.5, 1.0, None),
    b"1200 rows": (1200.0, None, "rows"),
    b"11/10 more than was thought": (11.0, 10.0, "more than was thought"),
    b"0/0": (0.0, 0.0, None),
    b"  3/10   spaces  \r\n": (3.0, 10.0, "spaces"),
    b"3/10\r": (3.0, 10.0, None),
    b"007 bond": (7.0, None, "bond"),
    b"3 /10": (3.0, None, "/10"),
    b"1/2 a/b 3/4": (1.0, 2.0, "a/b 3/4"),
    "2 gr\u00fc\u00dfe".encode(): (2.0, None, "gr\u00fc\u00dfe"),
    b"2 \xff\xfe": (2.0, None, "\ufffd\ufffd"),
    b"2 a\0b": (2.0, None, "a\ufffdb"),
    b"2 a\x0bb\xc2\x85c": (2.0, None, "a b c"),
    b"9" * 32: (1e32, None, None),
}
NONE = [
    b"", b" ", b"\n", b"loading", b"-1", b"+1", b"1e3", b"nan", b"inf", b"0x10", b"1_000", b"3,5",
    b"30%", b"3/", b"/3", b"/", b".", b"./.", b"1.2.3", b"1/2/3", b"3/-1", b"3/x", b"3/10\tloading",
    b"\xd9\xa3", "\u0663".encode(), b"9" * 33, b"1/" + b"9" * 33, b"\xff", b"1\0",
]  # fmt: skip

NUMBER = rb"[0-9]+\.?[0-9]*|\.[0-9]+"
GRAMMAR = re.compile(rb"(%b)(?:/(%b))?(?: (.*))?" % (NUMBER, NUMBER), re.DOTALL)


@each("line", REPORTS)
def test_a_report(line):
    """Done, total and message come from the line, and from the stored report."""
    assert progress.parse(line) == REPORTS[line]
    assert progress.parse(progress.normalize(line)) == REPORTS[line]


@each("line", NONE)
def test_no_report(line):
    """A line of any other form is no report, and no error."""
    assert progress.parse(line) is None
    assert progress.normalize(line) is None


@given(
    st.one_of(
        st.binary(max_size=60),
        st.text("0123456789./ -+e", max_size=20).map(str.encode),
        st.from_regex(GRAMMAR, fullmatch=True),
    )
)
def test_the_grammar(line):
    """Bytes are a report if and only if they match the form, and nothing raises."""
    words = GRAMMAR.fullmatch(line.strip())
    valid = words is not None and all(len(word or b"") <= 32 for word in words.groups()[:2])
    found = progress.parse(line)
    kept = progress.normalize(line)

    assert (found is not None) == (kept is not None) == valid
    if found is not None:
        done, total, message = found
        assert done == float(words[1])
        assert total == (None if words[2] is None else float(words[2]))
        assert message is None or (message and "\n" not in message)
        assert progress.parse(kept) == found
        assert progress.normalize(kept) == kept


def test_a_long_message_is_cut_between_characters():
    """A message is cut at a bound, and never inside a character."""
    line = b"1/2 " + "\u20ac".encode() * 20_000

    assert progress.parse(line) == (1.0, 2.0, "\u20ac" * progress.MAX_MESSAGE)
    assert len(progress.normalize(line)) == 4 + 3 * progress.MAX_MESSAGE


def test_the_descriptor_is_one_digit():
    """Every shell can name it: some take one digit and no more."""
    assert 2 < progress.DESCRIPTOR < 10


# --- the meter ---


class Spool:
    """What a meter writes, and whether there is space."""

    def __init__(self):
        self.held = False
        self.written = []

    def append(self, stream, flags, count, payload, time_ns):
        """Take a frame of progress: it has no lines."""
        assert (stream, flags, count) == (frames.PROGRESS, 0, 0)
        assert time_ns > 0
        self.written.append(payload)


class Bench:
    """A meter with a pipe, a spool and what it said."""

    def __init__(self, redact=()):
        self.spool = Spool()
        self.said = []
        self.meter = ProgressReader(
            self.spool, self.said.append, Values(list(redact)) if redact else None
        )
        reader, self.writer = os.pipe()
        os.set_blocking(reader, False)
        self.meter.add(reader)

    def write(self, data):
        """Write one piece, and have it read by itself."""
        os.write(self.writer, data)
        assert self.meter.read()

    @property
    def latest(self):
        """Return the report that waits to be written."""
        return self.meter._latest and self.meter._latest[0]

    def close(self):
        self.meter.close()
        os.close(self.writer)


@pytest.fixture
def bench():
    made = []

    def make(**arguments):
        made.append(Bench(**arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_written_at_once_after_quiet_then_not_too_often(bench):
    """After a quiet time, a report is written at once; of those that follow, the last one later."""
    one = bench()
    one.write(b"1/9\n")
    one.meter.advance(100.0)
    for done in range(2, 6):
        one.write(b"%d/9\n" % done)
        one.meter.advance(100.0 + REPORT_EVERY * 0.9)
    early = list(one.spool.written)
    due = one.meter.due()
    one.meter.advance(due)
    one.meter.advance(due + 10)

    assert early == [b"1/9"]
    assert due == 100.0 + REPORT_EVERY
    assert one.spool.written == [b"1/9", b"5/9"]
    assert one.meter.due() == float("inf")


def test_the_last_word_is_written_at_the_end(bench):
    """The rest in the pipe is read and written, also without a newline."""
    one = bench()
    one.write(b"1/3\n")
    one.meter.advance(0.0)
    os.write(one.writer, b"2/3\n3/3 done")
    one.meter.end()

    assert one.spool.written == [b"1/3", b"3/3 done"]
    assert one.meter.descriptor == -1
    with pytest.raises(BrokenPipeError):
        os.write(one.writer, b"4/3\n")


def test_nothing_reported_nothing_written(bench):
    """A pipe on which nothing comes leaves no frame, and its end is no error."""
    one = bench()
    one.meter.advance(1.0)
    one.meter.end()
    one.meter.end()

    assert one.spool.written == []


def test_a_full_disk_holds_the_report_not_the_pipe(bench):
    """Without space reports are still read, and the latest is written when there is some."""
    one = bench()
    one.spool.held = True
    for done in range(1000):
        one.write(b"%d\n" % done)
        one.meter.advance(float(done))
    held = list(one.spool.written)
    due = one.meter.due()
    one.spool.held = False
    one.meter.advance(5000.0)

    assert held == []
    assert due == float("inf")
    assert one.spool.written == [b"999"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_reports_cut_at_any_byte(bench, end):
    """Wherever a read ends, the report is the whole line's."""
    line = b"12/345 f\xc3\xbcr alle" + end
    for cut in range(1, len(line)):
        one = bench()
        one.write(line[:cut])
        before = one.latest
        one.write(line[cut:])

        assert before is None
        assert one.latest == b"12/345 f\xc3\xbcr alle"


def test_the_last_of_many_counts_and_damage_does_not(bench):
    """The last valid report of a read counts; an invalid one is noted once."""
    one = bench()
    one.write(b"1/9\n\n2/9\nnonsense\n\n")
    first = one.latest
    one.write(b"3/9\nmore nonsense\n" * 3)

    assert (first, one.latest) == (b"2/9", b"3/9")
    assert one.said == ["a malformed progress report is dropped: 'nonsense'"]


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=20))
def test_any_bytes_are_read(pieces):
    """Whatever a command writes, nothing raises, and the last whole report counts."""
    one = Bench()
    try:
        for piece in pieces:
            one.write(piece)
        one.meter.end()
    finally:
        one.close()
    lines = b"".join(pieces).split(b"\n")
    reports = [kept for kept in map(progress.normalize, lines) if kept is not None]

    assert one.spool.written == reports[-1:]


@pytest.mark.parametrize("piece", [1000, 65536])
def test_a_line_without_end_takes_no_memory(bench, piece):
    """A line too long to be one is passed over as it comes, and the next one counts."""
    one = bench()
    for _ in range(200_000 // piece):
        one.write(b"7" * piece)
        assert len(one.meter._carry) <= MAX_REPORT
    one.write(b"8\n5/6\n")

    assert one.latest == b"5/6"
    assert len(one.said) == 1


@pytest.mark.parametrize("first", [1, 30_000, 65_530])
def test_too_long_is_too_long_in_any_pieces(bench, first):
    """Where a long line ends does not depend on how it is read."""
    for size, expected in ((MAX_REPORT - 1, True), (MAX_REPORT, False)):
        one = bench()
        line = b"1 " + b"x" * (size - 2)
        one.write(line[:first])
        one.write(line[first:] + b"\n" if size - first < MAX_REPORT else line[first:])
        if size - first >= MAX_REPORT:
            one.write(b"\n")

        assert (one.latest is not None) == expected


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_secret_in_a_message_is_masked_in_any_pieces(bench, cut):
    """It is masked before the report is stored, also when two reads split it."""
    line = b"1/2 with S3cret-value in\n"
    one = bench(redact=[b"S3cret-value"])
    one.write(line[:cut])
    one.write(line[cut:])
    other = bench(redact=[b"S3cret-value"])
    other.write(b"S3cret-value\n")
    other.write(b"9 S3cret-val")
    other.meter.end()

    assert one.latest == b"1/2 with *** in"
    assert other.said == ["a malformed progress report is dropped: '***'"]
    assert other.spool.written == [b"9 S3cret-val"]  # the beginning of a value is none


def test_secret_is_masked_before_a_message_is_cut(bench):
    """A value is masked before a long message is cut, so no half of it is left."""
    secret = b"S3cret-value"
    for shift in range(len(secret) + 1):
        one = bench(redact=[secret])
        one.write(b"1 " + b"x" * (progress.MAX_MESSAGE - shift) + secret + b"\n")
        masked = (b"x" * (progress.MAX_MESSAGE - shift) + b"***")[: progress.MAX_MESSAGE]

        assert one.latest == b"1 " + masked
