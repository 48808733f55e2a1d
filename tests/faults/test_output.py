"""Output: whatever a command writes, and however fast, comes back byte for byte, in its order."""

from __future__ import annotations

import hashlib
import json
import os
from itertools import zip_longest

import pytest

from jobcore import Command, Status
from jobcore.supervisor import frames
from jobcore.supervisor.capture import Capture
from tests.faults import invariants
from tests.faults.hostile import HOSTILE, cut, stream, wrong_pieces
from tests.faults.rounds import in_rounds
from tests.processes import PATIENCE

pytestmark = pytest.mark.usefixtures("warm_supervisors")

MERGED = (frames.OUTPUT,)
SEPARATE = (frames.STDOUT, frames.STDERR)
STREAMS = pytest.mark.parametrize("streams", [MERGED, SEPARATE], ids=["merged", "separate"])


class Captured:
    """A RUNNING job whose output the capture of a supervisor takes from pipes of the test."""

    def __init__(self, run, streams):
        self.run = run
        with run.open() as directory:
            self._directory = os.dup(directory)
        self._capture = Capture(self._directory, limit=None, redact=[])
        self._pipes = {}
        for one in streams:
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            self._capture.add(reader, one)
            self._pipes[one] = reader, writer

    def write(self, piece, stream):
        """Write one piece, which is read by itself: at most what a pipe holds."""
        reader, writer = self._pipes[stream]
        assert os.write(writer, piece) == len(piece)
        assert self._capture.read(reader)

    def end(self):
        """End the pipes, one behind the other, and then the job, as a command does that exits."""
        for reader, writer in self._pipes.values():
            os.close(writer)
            assert not self._capture.read(reader)
        spool = self._capture.spool
        self.run.exit(spool_end=spool.end, next_sequence=spool.next_sequence)
        self.run.die()
        self._capture.close()
        os.close(self._directory)


def check_log(jobs, job_id, written):
    """Return what is wrong with the log of a job that wrote so much into each stream."""
    lines = list(jobs.logs(job_id))
    wrong = []
    if [line.sequence for line in lines] != list(range(jobs.get_job(job_id).line_count)):
        wrong.append("the numbers have gaps")
    if not {line.stream for line in lines} <= {frames.STREAM_NAMES[number] for number in written}:
        wrong.append("there are lines of others")
    for number, data in written.items():
        name = frames.STREAM_NAMES[number]
        kept = [(line.raw, line.partial) for line in lines if line.stream == name]
        digest = hashlib.sha256(b"".join(raw for raw, _ in kept)).digest()
        if digest != hashlib.sha256(data).digest():
            wrong.append(f"the bytes of {name} differ")
        wrong += wrong_pieces(data, kept)
    return wrong if len(lines) > 1000 else wrong + wrong_forms(jobs, job_id, lines)


def wrong_forms(jobs, job_id, lines):
    """Return what is wrong with the forms in which the same lines are sent."""
    wrong = []
    if b"".join(jobs.log_text(job_id)) != b"".join(line.raw for line in lines):
        wrong.append("as text it differs")
    for line, sent in zip_longest(lines, jobs.log_ndjson(job_id)):
        form = json.loads(sent)
        message = line.raw.removesuffix(b"\n").removesuffix(b"\r" * line.raw.endswith(b"\n"))
        if (form["sequence"], form["stream"]) != (line.sequence, line.stream):
            wrong.append(f"an object says of line {line.sequence}: {form}")
        if form["message"] != message.decode("utf-8", "replace") or sent.count(b"\n") != 1:
            wrong.append(f"an object has another text: {sent[:80]}")
    return wrong


def play(jobs, captured, pieces, chance):
    """Write the pieces of all streams, in any order that keeps each, with a few imports between."""
    imports = {chance.randrange(30) for _ in range(3)}
    done = 0
    while pieces:
        number = chance.choice(list(pieces))
        piece = next(pieces[number], None)
        if piece is None:
            del pieces[number]
            continue
        captured.write(piece, number)
        done += 1
        if done in imports or chance.random() < 0.002:
            jobs.get_job(captured.run.id)
    captured.end()


def sizes_for(data, chance):
    """Return of what sizes reads are: single bytes where that is no great number of them."""
    if len(data) < 300:
        return chance.choice(([1], [1, 2, 3], [65536]))
    return chance.choice(([64, 1000], [4001], [65536], [1, 4096, 65536]))


@in_rounds(smoke=1, full=20, long=True)
@STREAMS
def test_hostile_bytes_come_back_as_they_were(jobs, scripted, streams, rounds):
    """However reads and imports split the output, each stream has exactly its bytes."""
    names = list(HOSTILE)
    for chance in rounds:
        wrong = {}
        for name in names:
            # The other stream is another case, so that lines of both lie between each other.
            written = dict(zip(streams, (HOSTILE[name], HOSTILE[chance.choice(names)])))  # noqa: B905
            captured = Captured(scripted(), streams)
            pieces = {
                number: cut(chance, data, sizes_for(data, chance))
                for number, data in written.items()
            }
            play(jobs, captured, pieces, chance)
            wrong[name] = check_log(jobs, captured.run.id, written)
            assert jobs.get_job(captured.run.id).status is Status.COMPLETE
        assert {name: what for name, what in wrong.items() if what} == {}
        invariants.check(jobs)
        jobs.prune(0)  # or each round would look at all before it


@in_rounds(smoke=20, full=5000, long=True)
def test_any_stream_in_any_pieces_is_kept(jobs, scripted, rounds):
    """Random streams, cut anywhere by writes, reads and imports, come back as they were."""
    for batch in rounds.batches(100):
        for chance in batch:
            streams = chance.choice((MERGED, SEPARATE))
            size = chance.choice((0, 1, 100, 5000, 200_000))
            written = {number: stream(chance, size) for number in streams}
            captured = Captured(scripted(), streams)
            play(jobs, captured, {one: cut(chance, data) for one, data in written.items()}, chance)
            assert check_log(jobs, captured.run.id, written) == []
        invariants.check(jobs)
        jobs.prune(0)


#: Those that have to do with how a command's writes, a pipe and its reader come together.
_THROUGH_A_PROCESS = [name for number, name in enumerate(HOSTILE) if number % 6 == 0]


@STREAMS
def test_hostile_bytes_of_real_commands(running_jobs, tmp_path, streams):
    """The same through real processes: what `cat` copies into its pipes is the log."""
    paths = {}
    for number, (name, data) in enumerate(HOSTILE.items()):
        paths[name] = tmp_path / str(number)
        paths[name].write_bytes(data)
    names = list(HOSTILE)
    begun = []
    for name in _THROUGH_A_PROCESS:
        pair = (name, names[(names.index(name) + 7) % len(names)])[: len(streams)]
        script = 'cat "$1"; if [ "$2" ]; then cat "$2" >&2; fi'
        command = Command(
            ["sh", "-c", script, "sh", *(paths[one] for one in pair)],
            separate_streams=streams == SEPARATE,
        )
        written = dict(zip(streams, map(HOSTILE.get, pair), strict=True))
        begun.append((name, running_jobs.submit(command).id, written))

    assert len(begun) >= 15
    for name, job_id, written in begun:
        assert running_jobs.wait(job_id, PATIENCE).status is Status.COMPLETE
        assert (name, check_log(running_jobs, job_id, written)) == (name, [])
