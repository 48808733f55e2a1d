"""Unfinished lines: where they can be seen, when they are numbered, and what of them is held."""

from __future__ import annotations

import io
import os
import random

import pytest

from jobcore.storage import log_segments
from jobcore.supervisor import frames, job_directory
from jobcore.supervisor import spool as tails
from jobcore.supervisor.capture import Capture
from jobcore.supervisor.spool import UnfinishedLines
from tests.cases import every

SECOND = 10**9
BEGIN = 1_700_000_000 * SECOND


class Recorder:
    """A capture whose clock the test moves, and what is in its directory."""

    def __init__(self, path, *, streams=(frames.OUTPUT,), **options):
        self.now = 0.0
        self.directory = os.open(path, os.O_RDONLY)
        self.capture = Capture(
            self.directory,
            **{"limit": None, "redact": [], **options},
            time_ns=lambda: BEGIN + int(self.now * SECOND),
        )
        self.pipes = {}
        for stream in streams:
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            self.pipes[stream] = reader, writer
            self.capture.add(reader, stream)

    def write(self, data, stream=frames.OUTPUT):
        """Have one piece read by itself."""
        reader, writer = self.pipes[stream]
        os.write(writer, data)
        self.capture.read(reader)
        self.capture.unfinished.advance(self.now)

    def wait(self, seconds):
        """Let time go by, from one due moment to the next."""
        end = self.now + seconds
        while (due := self.capture.unfinished.due) <= end:
            self.now = max(self.now, due)
            self.capture.unfinished.advance(self.now)
        self.now = end

    def end(self):
        """End all pipes."""
        for reader, writer in self.pipes.values():
            os.close(writer)
            self.capture.read(reader)
        self.pipes.clear()

    @property
    def seen(self):
        """Return what a reader sees of unfinished lines, whether or not they are numbered now."""
        return log_segments.unfinished(job_directory.read_tail(self.directory))

    @property
    def shown(self):
        """Return what a reader shows of them, by stream."""
        seen = self.seen
        if seen is None or seen.first != self.capture.spool.next_sequence:
            return {}
        return {line.stream: line.raw for line in seen.lines}

    @property
    def numbered(self):
        """Return the lines in the spool: stream, text, seconds, and whether it is a piece."""
        data = job_directory.read_spool(self.directory, 0, 1 << 26)
        return [
            (
                frames.STREAM_NAMES[frame.stream],
                raw,
                (frame.time_ns - BEGIN) / SECOND,
                frame.partial,
            )
            for frame in frames.scan(data)
            for raw in io.BytesIO(data[frame.start : frame.end])
        ]

    def close(self):
        for _, writer in self.pipes.values():
            os.close(writer)
        self.capture.close()
        os.close(self.directory)


@pytest.fixture
def record(tmp_path):
    recorders = []

    def make(**options):
        path = tmp_path / str(len(recorders))
        path.mkdir()
        recorders.append(Recorder(path, **options))
        return recorders[-1]

    yield make
    for one in recorders:
        one.close()


def test_unfinished_text_is_in_the_tail_within_a_second(record):
    """It is seen with the time of its writing, and has no number."""
    recorder = record()
    recorder.wait(5)
    recorder.write(b"Continue? [y/N] ")
    recorder.wait(1)

    (line,) = recorder.seen.lines
    assert (line.sequence, line.unfinished, line.partial) == (None, True, True)
    assert (line.stream, line.raw) == ("output", b"Continue? [y/N] ")
    assert line.time_ns == BEGIN + 5 * SECOND
    assert (recorder.numbered, recorder.capture.spool.next_sequence) == ([], 0)


def test_line_that_ends_at_once_makes_no_file(record):
    """What is whole before it is due is never written twice, and nothing is due after it."""
    recorder = record()
    for _ in range(100):
        recorder.write(b"half ")
        recorder.wait(0.2)
        recorder.write(b"whole\n")
    assert recorder.capture.unfinished.due == float("inf")
    recorder.wait(10)

    assert job_directory.TAIL not in os.listdir(recorder.directory)


def test_finished_line_has_the_time_of_its_beginning(record):
    """The time of a prompt is kept, and the lines read with its end have their own."""
    recorder = record()
    recorder.write(b"Continue? ")
    recorder.wait(10)
    recorder.write(b"yes\nnext\n")

    assert recorder.numbered == [
        ("output", b"Continue? yes\n", 0.0, False),
        ("output", b"next\n", 10.0, False),
    ]
    assert recorder.shown == {}


def test_system_line_comes_after_unfinished_text(record):
    """The text becomes a piece with its own time; the rest of the line goes on from there."""
    recorder = record()
    recorder.write(b"Continue? ")
    recorder.wait(3)
    recorder.capture.write_system("stopped")
    recorder.write(b"no\n")
    recorder.end()

    assert recorder.numbered == [
        ("output", b"Continue? ", 0.0, True),
        ("system", b"stopped\n", 3.0, False),
        ("output", b"no\n", 3.0, False),
    ]


def test_text_without_an_end_has_its_own_time(record):
    """At the end of the output, the rest is a line with the time of its read."""
    recorder = record()
    recorder.write(b"Continue? ")
    recorder.wait(60)
    recorder.end()

    assert recorder.numbered == [("output", b"Continue? ", 0.0, False)]


def test_bar_that_is_drawn_for_an_hour_is_one_line(record):
    """Its bytes are one line, however often it was written and shown."""
    recorder = record()
    drawn = [b"\r%5.1f%%" % (second / 36) for second in range(3600)]
    for one in drawn:
        recorder.write(one)
        recorder.wait(1)
        assert recorder.shown["output"].endswith(one)
    recorder.write(b"\n")

    assert recorder.numbered == [("output", b"".join(drawn) + b"\n", 0.0, False)]


def test_pieces_of_a_long_bar_have_their_own_times(record):
    """A line is cut at 64 KiB, wherever reads were, and the tail goes on with its rest."""
    recorder = record()
    for _ in range(10):
        recorder.write(b"x" * 10_000)
        recorder.wait(1)

    assert [(len(raw), at, partial) for _, raw, at, partial in recorder.numbered] == [
        (65_536, 0.0, True)
    ]
    assert recorder.shown == {"output": b"x" * (100_000 - 65_536)}
    assert recorder.seen.lines[0].time_ns == BEGIN + 6 * SECOND


@every(seed=range(20))
def test_numbers_do_not_depend_on_timing(record, seed):
    """The same bytes are the same lines, written at once or with pauses at any place."""
    rng = random.Random(seed)
    pieces = [
        rng.choice([b"line\n", b"10%\r", b'{"a": 1}\n', b"? ", "\u20ac".encode(), b"x" * 30_000])
        for _ in range(rng.randrange(60))
    ]
    data = b"".join(pieces)
    fast, slow = record(), record()
    for begin in range(0, len(data), 65_536):
        fast.write(data[begin : begin + 65_536])
    while data:
        size = rng.choice((1, 2, 7, 1000, 60_000))
        slow.write(data[:size])
        slow.wait(rng.choice((0, 0.1, 0.3, 5)))
        data = data[size:]
    fast.end()
    slow.end()

    assert [one[:2] for one in fast.numbered] == [one[:2] for one in slow.numbered]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"jobcore:pro", {}),
        (b"jobcore:progress 3/10 load", {}),
        (b"jobcore: it", {"output": b"jobcore: it"}),
        (b"a\nb jobcore:progress 1", {"output": b"b jobcore:progress 1"}),
        ("\u20ac".encode()[:2], {}),
        ("a\u20ac".encode()[:-1], {"output": b"a"}),
        ("\U0001f600".encode()[:-1], {}),
        (b"latin \xe4", {"output": b"latin "}),
        (b"\xff\xfe\x80\x80\x80", {"output": b"\xff\xfe\x80\x80\x80"}),
        (b"the key is sec", {"output": b"the key is "}),
        (b"the key is secret!", {"output": b"the key is ***!"}),
    ],
)
def test_undecided_text_is_held_back(record, data, shown):
    """The beginning of a report, of a character or of a value to be masked is not shown."""
    recorder = record(redact=[b"secret"])
    recorder.write(data)
    recorder.wait(1)

    assert recorder.shown == shown


def test_undecided_text_is_not_torn_by_a_line_of_jobcore(record):
    """A report that had begun stays one, and a character stays whole."""
    recorder = record(redact=[b"secret"])
    euro = "\u20ac".encode()
    for begun, rest in ((b"jobcore:prog", b"ress 1/2\n"), (euro[:2], euro[2:] + b"\n")):
        recorder.write(begun)
        recorder.capture.write_system("said")
        recorder.write(rest)
    recorder.write(b"x sec")
    recorder.capture.write_system("said")
    recorder.write(b"ret\n")

    assert [one[:2] for one in recorder.numbered] == [
        ("system", b"said\n"), ("system", b"said\n"), ("output", euro + b"\n"),
        ("output", b"x "), ("system", b"said\n"), ("output", b"***\n"),
    ]  # fmt: skip


def test_each_of_two_streams_has_its_unfinished_line(record):
    """Lines of one stream leave that of the other where it is, with a new place."""
    recorder = record(streams=(frames.STDOUT, frames.STDERR))
    recorder.write(b"Continue? ", frames.STDOUT)
    recorder.write(b"a warning\nand ", frames.STDERR)
    recorder.wait(1)
    assert recorder.shown == {"stdout": b"Continue? ", "stderr": b"and "}

    recorder.write(b"more\n", frames.STDERR)
    recorder.wait(1)
    assert recorder.shown == {"stdout": b"Continue? "}

    recorder.write(b"yes\n", frames.STDOUT)
    recorder.wait(1)
    assert recorder.shown == {}
    assert [one[:2] for one in recorder.numbered] == [
        ("stderr", b"a warning\n"), ("stderr", b"and more\n"), ("stdout", b"Continue? yes\n"),
    ]  # fmt: skip


@pytest.mark.parametrize("written", [0, 10])
def test_text_beyond_the_output_limit_is_not_shown(record, written):
    """What will be dropped is seen nowhere, and counts as one line."""
    recorder = record(limit=20)
    recorder.write(b"x" * written + b"\n")
    recorder.write(b"y" * 30)
    recorder.wait(1)
    assert recorder.shown == {}
    recorder.capture.write_system("said")
    recorder.write(b"z\n")

    assert [stream for stream, *_ in recorder.numbered] == ["output", "system", "system"]
    assert recorder.capture.dropped == 1


def test_full_disk_is_tried_again(record, monkeypatch):
    """Nothing is lost by it, and the text is there when there is space."""
    full = [True]
    pwrite = os.pwrite
    monkeypatch.setattr(tails.os, "pwrite", lambda *a: 3 if full[0] else pwrite(*a))
    recorder = record()
    recorder.write(b"Continue? ")
    recorder.wait(3)
    assert recorder.shown == {}

    full[0] = False
    recorder.wait(1)
    assert recorder.shown == {"output": b"Continue? "}


def test_removed_file_is_made_again(record):
    """As the other files of a running job are."""
    recorder = record()
    recorder.write(b"Continue? ")
    recorder.wait(1)
    os.unlink(job_directory.TAIL, dir_fd=recorder.directory)
    recorder.capture.unfinished.repair()
    recorder.capture.unfinished.advance(recorder.now)
    recorder.wait(1)

    assert recorder.shown == {"output": b"Continue? "}


def test_tail_records_the_end_of_the_streams_last_line(record):
    """A reader needs no line of the other stream before the text, but those of jobcore."""
    recorder = record(streams=(frames.STDOUT, frames.STDERR))
    recorder.write(b"half ", frames.STDOUT)
    recorder.wait(1)
    assert (recorder.seen.first, recorder.seen.after) == (0, (0,))
    for number in range(1, 4):
        recorder.write(b"other\n", frames.STDERR)
        recorder.wait(1)
        assert (recorder.seen.first, recorder.seen.after) == (number, (0,))
    recorder.write(b"line\nhalf ", frames.STDOUT)
    recorder.write(b"other\nmore ", frames.STDERR)
    recorder.wait(1)
    assert recorder.seen.ends == {"stdout": 4, "stderr": 5}
    recorder.capture.write_system("said")
    recorder.write(b"of it", frames.STDOUT)
    recorder.write(b"end\n" * 2, frames.STDERR)
    recorder.wait(1)

    assert [text for _, text, *_ in recorder.numbered[5:]] == [
        b"half ", b"more ", b"said\n", b"end\n", b"end\n",
    ]  # fmt: skip
    assert (recorder.seen.first, recorder.seen.ends) == (10, {"stdout": 8})
    assert log_segments.unfinished_frames(job_directory.read_tail(recorder.directory))[0][1] == (
        b"of it"
    )


def test_older_and_newer_versions_read_each_others_tails(record):
    """An older reader stops at the first frame with another number; an older tail has none."""
    recorder = record(streams=(frames.STDOUT, frames.STDERR))
    recorder.write(b"half ", frames.STDOUT)
    recorder.write(b"other\nmore ", frames.STDERR)
    recorder.wait(1)
    _, slot = job_directory.read_tail(recorder.directory)  # the first text is in the second one
    found = [(frame.first, slot[frame.start : frame.end]) for frame in frames.scan(slot)]
    assert found == [(1, b"half "), (1, b"more "), (0, b"")]
    older = slot[: -frames.HEADER_SIZE]

    assert log_segments.unfinished([slot, b""]).after == (0, 1)
    assert log_segments.unfinished([older, b""]).after == (1, 1)


def test_end_of_a_stream_moves_the_text_of_the_other_one(record):
    """Its last line has no newline and gets a number only then."""
    recorder = record(streams=(frames.STDOUT, frames.STDERR))
    recorder.write(b"half ", frames.STDOUT)
    recorder.write(b"bye", frames.STDERR)
    recorder.wait(1)
    assert recorder.seen.first == 0
    reader, writer = recorder.pipes.pop(frames.STDERR)
    os.close(writer)
    recorder.capture.read(reader)
    recorder.capture.unfinished.advance(recorder.now)
    recorder.wait(1)

    assert (recorder.seen.first, recorder.seen.ends) == (1, {"stdout": 0})


def test_torn_write_leaves_the_text_before_it(tmp_path):
    """A reader, or a resolver after a SIGKILL, finds the newer whole slot at each length."""
    texts = [b"a" * 10, b"b" * 5000, b"c" * 100]
    directory = os.open(tmp_path, os.O_RDONLY)

    def framed(first, text):
        return frames.encode_header(frames.OUTPUT, frames.OPEN_END, first, 1, 5, text) + text

    try:
        for size in (0, 1, 30, 40, 1000, 5035):
            said = []
            tail = UnfinishedLines(directory, lambda said=said: said[-1])
            for first, text in enumerate(texts):
                said.append(framed(first, text))
                tail._write(said[-1])
            half = framed(3, b"d" * 5000)[:size]
            os.pwrite(tail._file, half, (1 - tail._slot) * job_directory.TAIL_SLOT)

            found = log_segments.unfinished(job_directory.read_tail(directory))
            assert (found.first, found.lines[0].raw) == (2, texts[2])
            tail.close()
    finally:
        os.close(directory)


def test_slot_holds_the_longest_lines_of_two_streams(record):
    """Neither slot reaches into the other."""
    recorder = record(streams=(frames.STDOUT, frames.STDERR))
    for size in (1, frames.MAX_PAYLOAD - 1):
        for stream, letter in ((frames.STDOUT, b"o"), (frames.STDERR, b"e")):
            recorder.write(letter * size, stream)
        recorder.wait(1)

    assert recorder.shown == {
        "stdout": b"o" * frames.MAX_PAYLOAD,
        "stderr": b"e" * frames.MAX_PAYLOAD,
    }
    assert 2 * (frames.HEADER_SIZE + frames.MAX_PAYLOAD) <= job_directory.TAIL_SLOT
