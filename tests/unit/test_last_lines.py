"""The last lines of a log: lines are counted, and each comes with all of its pieces."""

from __future__ import annotations

import random

from jobcore.storage import log_segments
from jobcore.supervisor import frames
from tests.cases import every


def random_log(rng):
    """Return frames as a supervisor writes them, and the streams whose last line goes on."""
    made, number = [], 0
    going_on = dict.fromkeys(rng.choice([(frames.OUTPUT,), (frames.STDOUT, frames.STDERR)]), False)
    for _ in range(rng.randrange(30)):
        stream = rng.choice([*going_on, frames.SYSTEM])
        partial = stream != frames.SYSTEM and rng.random() < 0.5
        count = 1 if partial else rng.randrange(4)
        made.append(frames.Frame(0, stream, frames.PARTIAL if partial else 0, number, count, 0, 0))
        number += count
        if count and stream != frames.SYSTEM:
            going_on[stream] = partial
    return made, number, [s for s, goes_on in going_on.items() if goes_on and rng.random() < 0.5]


def lines_of(made, unfinished):
    """Return the lines, in the order of their ends, each as the numbers of its pieces."""
    lines, begun = [], {}
    for frame in made:
        for number in range(frame.first, frame.first + frame.count):
            pieces = begun.pop(frame.stream, [])
            if frame.partial:
                begun[frame.stream] = [*pieces, number]
            else:
                lines.append([*pieces, number])
    cut = [pieces for stream, pieces in begun.items() if stream not in unfinished]
    lines = sorted(lines + cut, key=lambda line: line[-1])
    return lines + [begun.get(stream, []) for stream in unfinished]


@every(seed=range(300))
def test_last_lines_are_whole_lines(seed):
    """They are the last lines of the log as read from its beginning."""
    rng = random.Random(seed)
    made, end, unfinished = random_log(rng)
    lines = lines_of(made, unfinished)
    for count in range(len(unfinished), len(lines) + 2):
        going_on = {
            frames.STREAM_NAMES[stream]: max(
                (frame.first + frame.count for frame in made if frame.stream == stream), default=0
            )
            for stream in unfinished
        }
        last = log_segments.LastLines(count - len(unfinished), end, going_on)
        sequence = end
        for frame in reversed(made):
            if last.found:
                break
            sequence = last.before(sequence)
            if frame.first < sequence:
                last.take(frame)
                sequence = frame.first
        begin = last.begin or 0
        expected = sorted(number for line in lines[-count:] for number in line) if count else []

        assert sorted([*last.pieces, *range(begin, end)]) == expected, count
        assert not expected or last.first == expected[0]
