"""Capture: any bytes, in any pieces, come back as they were, in numbered lines."""

from __future__ import annotations

import errno
import os
import random
import re

import pytest

from jobcore.supervisor import frames, job_directory, progress, spool
from jobcore.supervisor.capture import Capture
from jobcore.supervisor.spool import Spool
from tests.cases import every
from tests.masks import masked

SEEDS = range(60)


class Recorder:
    """A capture of two pipes into a directory, and what is in its spool."""

    def __init__(self, path, *, limit=None, redact=(), streams=(frames.OUTPUT,)):
        self.directory = os.open(path, os.O_RDONLY)
        self.capture = Capture(self.directory, limit=limit, redact=list(redact))
        self.writers = {}
        self.readers = {}
        for stream in streams:
            reader, self.writers[stream] = os.pipe()
            self.readers[stream] = reader
            os.set_blocking(reader, False)
            self.capture.add(reader, stream)

    def feed(self, data, stream=frames.OUTPUT):
        """Write one piece, and have it read by itself."""
        os.write(self.writers[stream], data)
        self.capture.read(self.readers[stream])

    def finish(self):
        """End all pipes."""
        for stream, writer in self.writers.items():
            os.close(writer)
            if self.readers[stream] in self.capture.descriptors:
                assert self.capture.read(self.readers[stream]) is False
        self.writers.clear()

    @property
    def found(self):
        found, offset = [], 0
        while data := job_directory.read_spool(self.directory, offset, 1 << 26):
            whole = list(frames.scan(data))
            found += [(frame, data[frame.start : frame.end]) for frame in whole]
            offset += whole[-1].end
        assert offset == self.capture.spool.end
        return found

    @property
    def reported(self):
        """Return what the job last said of its progress."""
        latest = self.capture.progress._latest
        return latest and latest[0]

    def output(self, stream=frames.OUTPUT):
        return b"".join(payload for frame, payload in self.found if frame.stream == stream)

    def close(self):
        for writer in self.writers.values():
            os.close(writer)
        self.capture.close()
        os.close(self.directory)


@pytest.fixture
def record(tmp_path):
    recorders = []

    def make(**arguments):
        path = tmp_path / str(len(recorders))
        path.mkdir()
        recorders.append(Recorder(path, **arguments))
        return recorders[-1]

    yield make
    for recorder in recorders:
        recorder.close()


def random_bytes(rng, size):
    """Return bytes with lines of all lengths, valid and invalid UTF-8."""
    pieces, total = [], 0
    while total < size:
        kind = rng.random()
        if kind < 0.5:
            piece = b"x" * rng.randrange(80) + b"\n"
        elif kind < 0.7:
            piece = "\u00e4\u20ac\U0001f600".encode() * rng.randrange(40)
        elif kind < 0.8:
            piece = rng.randbytes(rng.randrange(200))
        elif kind < 0.9:
            piece = b"\n" * rng.randrange(5) + b"\r\n\0\x85\x0b\x1b[0m"
        else:
            piece = "\u20ac".encode() * rng.randrange(60_000)
        pieces.append(piece)
        total += len(piece)
    return b"".join(pieces)


def cut(rng, data):
    """Yield `data` in random pieces, none larger than a pipe."""
    while data:
        size = rng.choice((1, 2, 3, 10, 1000, 4096, 65536))
        yield data[:size]
        data = data[size:]


def check_numbers(found):
    expected = 0
    for frame, payload in found:
        assert frame.first == expected
        assert len(payload) <= frames.MAX_PAYLOAD
        newlines = payload.count(b"\n")
        if frame.flags & (frames.PARTIAL | frames.OPEN_END):
            assert (frame.count, newlines) == (1, 0)
        else:
            assert frame.count == newlines
            assert payload.endswith(b"\n")
        expected += frame.count
    return expected


@every(seed=SEEDS)
def test_any_stream_in_any_pieces(record, seed):
    """The payloads put together are the bytes that were written, and the numbers are dense."""
    rng = random.Random(seed)
    data = random_bytes(rng, rng.choice((0, 1, 1000, 300_000)))
    recorder = record()

    for piece in cut(rng, data):
        recorder.feed(piece)
    recorder.finish()

    assert recorder.output() == data
    assert check_numbers(recorder.found) == recorder.capture.spool.next_sequence


@every(seed=range(10))
def test_two_streams_share_their_numbers(record, seed):
    """Each of two streams comes back whole, and their lines have one dense numbering."""
    rng = random.Random(seed)
    streams = (frames.STDOUT, frames.STDERR)
    data = {stream: random_bytes(rng, 50_000) for stream in streams}
    recorder = record(streams=streams)
    pieces = {stream: list(cut(rng, data[stream])) for stream in streams}

    while any(pieces.values()):
        stream = rng.choice([each for each in streams if pieces[each]])
        recorder.feed(pieces[stream].pop(0), stream)
        if rng.random() < 0.01:
            recorder.capture.write_system("something happened")
    recorder.finish()

    assert {stream: recorder.output(stream) for stream in streams} == data
    check_numbers(recorder.found)


@pytest.mark.parametrize("size", [65534, 65535, 65536, 65537, 131072, 131073])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_lines_about_as_long_as_a_frame(record, size, end):
    """A line is cut only if it is longer than a frame with its newline."""
    recorder = record()
    for piece in cut(random.Random(size), b"a" * size + end):
        recorder.feed(piece)
    recorder.finish()

    pieces = -(-(size + len(end)) // frames.MAX_PAYLOAD)
    assert recorder.output() == b"a" * size + end
    assert [frame.partial for frame, _ in recorder.found] == [True] * (pieces - 1) + [False]
    assert bool(recorder.found[-1][0].flags & frames.OPEN_END) == (end == b"")


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("character", ["\u00e4", "\u20ac", "\U0001f600"])
def test_characters_are_not_cut(record, shift, character):
    """No piece of a long line of valid UTF-8 ends inside a character."""
    data = b"a" * shift + character.encode() * 50_000
    recorder = record()
    for start in range(0, len(data), 4001):
        recorder.feed(data[start : start + 4001])
    recorder.finish()

    assert "".join(payload.decode() for _, payload in recorder.found) == data.decode()


@pytest.mark.parametrize("byte", [0x80, 0xBF, 0xC3, 0xF0, 0xFF])
def test_invalid_utf_8_is_cut_nevertheless(record, byte):
    """Bytes that are no UTF-8 do not make a frame larger than it may be."""
    data = bytes([byte]) * 200_000
    recorder = record()
    for start in range(0, len(data), 65536):
        recorder.feed(data[start : start + 65536])
    recorder.finish()

    assert recorder.output() == data
    check_numbers(recorder.found)


# --- redaction ---


def test_a_value_across_the_cut_of_a_long_line(record):
    """A value that lies where a long line is cut is masked like any other."""
    secret = b"S3cret-value"
    for shift in range(1, len(secret)):
        data = b"a" * (frames.MAX_PAYLOAD - shift) + secret + b"b" * 100 + b"\n"
        recorder = record(redact=[secret])
        recorder.feed(data[:65536])
        recorder.feed(data[65536:])
        recorder.finish()

        assert recorder.output() == data.replace(secret, b"***")


def test_system_lines_are_masked_and_single(record):
    """A message of jobcore is one line without secret values."""
    recorder = record(redact=[b"secret"])
    recorder.capture.write_system("cannot start 'secret'\nforged: secret \udc80")
    recorder.finish()

    assert recorder.output(frames.SYSTEM) == b"cannot start '***' forged: *** \\udc80\n"


@pytest.mark.parametrize("value", [b"two\nlines", b"two\r\nlines", b"x" * 9000])
def test_system_lines_are_masked_before_they_are_made_to_fit(record, value):
    """A secret is masked before the message is joined into one line and cut."""
    recorder = record(redact=[value])
    recorder.capture.write_system("cannot start " + value.decode() + " here\n" + "y" * 9000)
    recorder.finish()

    line = recorder.output(frames.SYSTEM)
    assert line == b"cannot start *** here " + b"y" * (8192 - 22) + b"\n"


# --- output limit ---


@pytest.mark.parametrize("redact", [(), (b"xx\nx", b"\n\r")])
@every(seed=SEEDS)
def test_output_limit(record, seed, redact):
    """A prefix up to the limit is kept; the other lines are counted, and one line says so."""
    rng = random.Random(seed)
    data = b"".join(b"x" * rng.randrange(50) + b"\n" for _ in range(300))
    data += b"y" * rng.choice((0, 7))
    expected = masked(data, redact) if redact else data
    limit = rng.randrange(len(data) + 50)
    recorder = record(limit=limit, redact=redact)
    for piece in cut(rng, data):
        recorder.feed(piece)
    recorder.finish()

    kept = recorder.output()
    system = recorder.output(frames.SYSTEM)
    assert len(kept) <= limit
    assert expected.startswith(kept)
    if len(expected) <= limit:
        assert (kept, system, recorder.capture.dropped) == (expected, b"", 0)
    else:
        assert kept == b"" or kept.endswith(b"\n")
        assert system.count(b"\n") == 1
        assert recorder.capture.dropped == len(re.findall(rb"[^\n]*\n|.+$", expected[len(kept) :]))
    check_numbers(recorder.found)


def test_a_dropped_long_line_is_one_line(record):
    """A line of many pieces that is dropped counts once."""
    recorder = record(limit=10)
    for _ in range(5):
        recorder.feed(b"x" * 60_000)
    recorder.feed(b"\nshort\nopen")
    recorder.finish()

    assert recorder.output() == b""
    assert recorder.capture.dropped == 3


# --- progress in the output ---

REPORT = b"jobcore:progress 3/10 loading"
#: Lines that begin as a report does, or nearly, and are none: they stay as they are.
NO_REPORTS = [
    b"jobcore:progress\n",
    b"jobcore:progress \n",
    b"jobcore:progress soon\n",
    b"jobcore:progress 3/ten\n",
    b"jobcore:progress -1\n",
    b" jobcore:progress 3/10\n",
    b"x jobcore:progress 3/10\n",
    b"\rjobcore:progress 3/10\n",
    b"jobcore:Progress 3/10\n",
    b"jobcore: progress 3/10\n",
]


def without_reports(data):
    """Return what is output of it, and the last report, as one who has all of it sees it."""
    output, last = [], None
    for line in re.findall(rb"[^\n]*\n|[^\n]+", data):
        body = line.removesuffix(b"\n")
        report = None
        if line.startswith(progress.PREFIX) and len(body) < frames.MAX_PAYLOAD:
            report = progress.normalize(body[len(progress.PREFIX) :])
        last = last if report is None else report
        output += [line] if report is None else []
    return b"".join(output), last


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("before", [b"", b"a\n", b"\n"])
@pytest.mark.parametrize("streams", [(frames.OUTPUT,), (frames.STDOUT, frames.STDERR)])
def test_progress_report_is_not_a_line(record, end, before, streams):
    """A report is taken out wherever it is cut by two reads, and the lines around it are dense."""
    data = before + REPORT + end + (b"b\nc" if end else b"")
    for cut_at in range(1, len(data)):
        recorder = record(streams=streams)
        stream = streams[-1]
        recorder.feed(data[:cut_at], stream)
        recorder.feed(data[cut_at:], stream)
        recorder.finish()

        assert recorder.output(stream) == before + (b"b\nc" if end else b"")
        assert recorder.reported == b"3/10 loading"
        assert check_numbers(recorder.found) == recorder.capture.spool.next_sequence


@pytest.mark.parametrize("line", NO_REPORTS)
def test_malformed_report_stays_a_line(record, line):
    """A line that only begins like a report stays a line, wherever reads split it."""
    data = b"a\n" + line + b"b\n"
    for cut_at in range(1, len(data)):
        recorder = record()
        recorder.feed(data[:cut_at])
        recorder.feed(data[cut_at:])
        recorder.finish()

        assert recorder.output() == data
        assert recorder.reported is None


def test_two_streams_have_two_lines(record):
    """A line of one stream that has only begun does not make the other's report a part of it."""
    recorder = record(streams=(frames.STDOUT, frames.STDERR))
    recorder.feed(b"begun, ", frames.STDOUT)
    recorder.feed(b"jobcore:progress 1/2\n", frames.STDERR)
    recorder.feed(b"jobcore:progress 2/2\n", frames.STDOUT)
    recorder.finish()

    assert recorder.output(frames.STDOUT) == b"begun, jobcore:progress 2/2\n"
    assert recorder.output(frames.STDERR) == b""
    assert recorder.reported == b"1/2"


@pytest.mark.parametrize("shift", [-1, 0, 1, 17])
def test_rest_of_a_long_line_is_not_a_report(record, shift):
    """The rest of a long line can look like a report, and stays output."""
    data = b"x" * (frames.MAX_PAYLOAD + shift) + b"jobcore:progress 1/2\n" + REPORT + b"\n"
    for size in (1000, 4096, 65536):
        recorder = record()
        for start in range(0, len(data), size):
            recorder.feed(data[start : start + size])
        recorder.finish()

        assert recorder.output() == data.removesuffix(REPORT + b"\n")
        assert recorder.reported == b"3/10 loading"


def test_rest_of_a_long_last_line_is_not_a_report(record):
    """The same at the end of the output, which has no newline."""
    data = b"x" * frames.MAX_PAYLOAD + b"jobcore:progress 1/2"
    recorder = record()
    for start in range(0, len(data), 1000):
        recorder.feed(data[start : start + 1000])
    recorder.finish()

    assert recorder.output() == data
    assert recorder.reported is None


@pytest.mark.parametrize("size", [1000, 65536])
def test_a_report_longer_than_a_frame_is_a_line(record, size):
    """A line that is not kept whole is no report, whatever it begins with and how it is read."""
    short = b"jobcore:progress 1 " + b"x" * (frames.MAX_PAYLOAD - 20) + b"\n"
    long = b"jobcore:progress 2 " + b"x" * (frames.MAX_PAYLOAD - 19) + b"\n"
    recorder = record()
    for line in (short, long):
        for start in range(0, len(line), size):
            recorder.feed(line[start : start + size])
    recorder.finish()

    assert (len(short), len(long)) == (frames.MAX_PAYLOAD, frames.MAX_PAYLOAD + 1)
    assert recorder.output() == long
    assert recorder.reported == b"1 " + b"x" * progress.MAX_MESSAGE


@every(seed=SEEDS)
def test_reports_among_any_stream(record, seed):
    """Of any stream in any pieces the reports are taken out, and nothing else."""
    rng = random.Random(seed)
    pieces = []
    for _ in range(rng.randrange(60)):
        kind = rng.random()
        if kind < 0.3:
            pieces.append(b"jobcore:progress %d/%d\n" % (rng.randrange(99), rng.randrange(99)))
        elif kind < 0.5:
            pieces.append(rng.choice(NO_REPORTS))
        elif kind < 0.6:
            pieces.append(REPORT)
        else:
            pieces.append(random_bytes(rng, rng.choice((0, 1, 100, 70_000))))
    data = b"".join(pieces)
    recorder = record()
    for piece in cut(rng, data):
        recorder.feed(piece)
    recorder.finish()

    assert (recorder.output(), recorder.reported) == without_reports(data)
    assert check_numbers(recorder.found) == recorder.capture.spool.next_sequence


@every(seed=range(20))
def test_reports_do_not_count_for_the_output_limit(record, seed):
    """Reports do not count for the output limit, and come through when it is reached."""
    rng = random.Random(seed)
    lines = [b"x" * rng.randrange(50) + b"\n" for _ in range(200)]
    reports = [b"jobcore:progress %d/200\n" % number for number in range(200)]
    data = b"".join(line + report for line, report in zip(lines, reports, strict=True))
    limit = rng.randrange(3000)
    recorder = record(limit=limit)
    for piece in cut(rng, data):
        recorder.feed(piece)
    recorder.finish()
    kept = recorder.output()

    assert recorder.reported == b"199/200"
    assert b"".join(lines).startswith(kept)
    assert limit - 50 <= len(kept) <= limit
    assert recorder.capture.dropped == 200 - kept.count(b"\n")


@pytest.mark.parametrize("limit", [None, 0])
def test_a_secret_in_a_report_is_masked_in_any_pieces(record, limit):
    """A value in a report is masked, wherever it is cut, and beyond the limit, too."""
    secret = b"S3cret-value"
    data = b"a\njobcore:progress 1/2 with S3cret-value in\nb\n"
    for cut_at in range(1, len(data)):
        recorder = record(redact=[secret], limit=limit)
        recorder.feed(data[:cut_at])
        recorder.feed(data[cut_at:])
        recorder.finish()
        recorder.capture.progress.end()

        assert recorder.output() == (b"a\nb\n" if limit is None else b"")
        assert recorder.output(frames.PROGRESS) == b"1/2 with *** in"


def test_a_report_in_the_last_line_without_an_end(record):
    """The output may end within a report's line; draining a pipe that is held open, too."""
    recorder = record()
    os.write(recorder.writers[frames.OUTPUT], b"one\n" + REPORT)

    recorder.capture.drain()

    assert recorder.output() == b"one\n"
    assert recorder.reported == b"3/10 loading"


# --- end of a pipe that others hold open ---


def test_drain_takes_what_is_there_now(record):
    """Draining reads what the pipe holds, although a writer has it open."""
    recorder = record()
    os.write(recorder.writers[frames.OUTPUT], b"one\ntwo")

    recorder.capture.drain()

    assert recorder.output() == b"one\ntwo"
    assert recorder.capture.descriptors == []


# --- spool ---


class StubbornDisk:
    """A disk that takes a random part of each write, or says that it is full."""

    def __init__(self, seed, number=errno.ENOSPC):
        self.rng = random.Random(seed)
        self.number = number
        self.writev = os.writev

    def __call__(self, descriptor, parts):
        data = b"".join(parts)
        if self.rng.random() < 0.5:
            raise OSError(self.number, os.strerror(self.number))
        return self.writev(descriptor, [data[: self.rng.randrange(1, len(data) + 1)]])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("number", spool.NO_SPACE)
def test_full_disk_loses_nothing(record, monkeypatch, seed, number):
    """With short writes and a full disk in between, frames are whole and in order."""
    monkeypatch.setattr(os, "writev", StubbornDisk(seed, number))
    monkeypatch.setattr(spool, "ROTATE_AT", 2000)
    recorder = record()
    rng = random.Random(seed)
    data = b"".join(b"%d\n" % i for i in range(2000))
    for piece in cut(rng, data):
        while recorder.capture.spool.held:
            recorder.capture.spool.flush()
        recorder.feed(piece)
    recorder.finish()
    while not recorder.capture.spool.flush():
        pass

    assert recorder.output() == data
    assert check_numbers(recorder.found) == 2000
    assert not recorder.capture.spool.held


def test_output_is_held_whatever_the_error(record, monkeypatch):
    """A failing disk does not end the command; held output is written when it works again."""

    def fail(*_):
        raise OSError(errno.EIO, "broken")

    recorder = record()
    with monkeypatch.context() as broken:
        broken.setattr(os, "writev", fail)
        recorder.feed(b"line\n")
        assert recorder.capture.spool.held
    assert recorder.capture.spool.flush()
    recorder.finish()

    assert recorder.output() == b"line\n"


def test_files_begin_at_frames(record, monkeypatch):
    """Every spool file is named by its first byte, and begins with a frame."""
    monkeypatch.setattr(spool, "ROTATE_AT", 1000)
    recorder = record()
    for number in range(300):
        recorder.feed(b"line %d\n" % number)
    recorder.capture.spool.sync()
    recorder.finish()

    offsets = job_directory.spool_offsets(recorder.directory)
    assert len(offsets) > 5
    begins = {frame.begin for frame, _ in recorder.found}
    assert begins == {0} or len(begins) > 1
    for begin in offsets:
        data = job_directory.read_spool(recorder.directory, begin, 100)
        assert frames.decode(data) is not None


def test_job_without_output_has_no_spool_file(tmp_path):
    """A job without output has no spool file."""
    directory = os.open(tmp_path, os.O_RDONLY)
    Spool(directory).close()
    os.close(directory)

    assert list(tmp_path.iterdir()) == []
