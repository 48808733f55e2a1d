"""Lines in groups: the same bytes as line by line, from any line on, without an object per line."""

from __future__ import annotations

import io
import itertools
import json
import random
import sys
import tracemalloc

import pytest

from jobcore import JobDeleted, wire
from jobcore.cli.log_printer import LogPrinter
from jobcore.log_lines import LINES_AT_ONCE, LineGroup, Lines, taken_in_groups
from jobcore.models import LogLine
from jobcore.operations import waiting
from jobcore.structured_lines import ObjectFinder
from jobcore.supervisor import frames
from jobcore.wire.log_forms import EventForm, NdjsonForm, TextForm

TEXTS = [
    b"", b"plain", b'say "hi" \\ there', b"tab\tbell\x07\x1b[0m\x00\x7f", b"\xff broken \xe2\x82",
    "žluťoučký 😀 \u2028".encode(), b"\r", b"two\r\r", b"a\rb", b'{"a": 1, "b": "\xc3\xbc"}',
    b" \t{}\r", b'{"a": 1, "a": 2}', b'{"a": NaN}', b'["a"]', b"{", b'{"n":{"m":[1,2]}}',
    b'{"e": 1e3, "d": "\\ud800"}',
]  # fmt: skip


def groups(chance, count):
    """Return groups of lines with all kinds of text, as frames have them."""
    found, first = [], 0
    for _ in range(count):
        lines = [
            chance.choice(TEXTS) + chance.choice([b"\n", b"\r\n"])
            for _ in range(chance.randrange(1, 9))
        ]
        kind = chance.randrange(4)
        if kind == 0:  # the last line has no end
            lines[-1] = chance.choice(TEXTS) or b"x"
        elif kind == 1:  # a piece of a longer line
            lines = [chance.choice(TEXTS) or b"x"]
        stream = chance.choice(["output", "stdout", "stderr", "system"])
        time_ns = chance.randrange(2**60)
        found.append(LineGroup(first, len(lines), time_ns, stream, kind == 1, b"".join(lines)))
        first += len(lines)
    return found


def line_by_line(groups):
    """Return the lines of groups, made one by one."""
    return [
        LogLine(group.first + index, group.time_ns, group.stream, raw, group.partial)
        for group in groups
        for index, raw in enumerate(io.BytesIO(group.raw))
    ]


@pytest.mark.parametrize("form", [TextForm, NdjsonForm, EventForm])
def test_groups_become_the_same_bytes_as_lines(form):
    """Each form gives the same bytes for a group as for its lines, one by one and together."""
    chance = random.Random(3)
    for _ in range(50):
        some = groups(chance, 20)
        lines = line_by_line(some)
        expected = list(map(form().encode, lines))

        assert list(Lines.of(some)) == lines
        assert list(form().encode_all(Lines.of(some))) == expected
        assert b"".join(form().encode_together(Lines.of(some))) == b"".join(expected)


ALPHABET = [
    b"a", b"%", b"%d", b"%%", b'"', b"\\", b"\\n", b"\r", b"\0", b"\x1b", b"\x7f", b"\t", b" ",
    b"{", b"}", b'{"a": 1}', b'{"%s": "\\u00e9"}', "\u2028é😀\x85".encode(), b"\xed\xa0\x80",
    b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\x0c",
]  # fmt: skip


def test_lines_of_any_bytes_become_the_same_json_in_groups():
    """Escapes, invalid UTF-8 and format characters are the same in a group and line by line."""
    chance = random.Random(9)
    for _ in range(500):
        lines = [
            b"".join(chance.choices(ALPHABET, k=chance.randrange(6)))
            + chance.choice([b"\n", b"\r\n"])
            for _ in range(chance.randrange(1, 9))
        ]
        if chance.random() < 0.3:
            lines[-1] = lines[-1].rstrip(b"\r\n") or b"x"
        group = LineGroup(
            chance.randrange(20), len(lines), 0, "stdout", partial=False, raw=b"".join(lines)
        )
        expected = list(map(NdjsonForm().encode, line_by_line([group])))

        assert list(NdjsonForm().encode_each(group)) == expected


KINDS = [
    b'{"a": %d}', b'{"a": "%d"}', b'{"b": %d, "a": true}', b'{"a": %d, "a": 1}', b'{"%%": %d}',
    b'{"a": %d, "b": false}', b' {"a": %d}\r', b'{"a": %d.5}', b'{"a": 0%d}', b'{"a": [%d]}',
    b'{"b": "\xff%d", "a": true}', b'{"b": "\xc3\xa9%d", "a": null}', b'{"a": %d} ', b'{"a": %d}x',
    b'{"a.c": %d}', b'{"axc": %d}', b'{"a": "\t%d"}', b'{"a": "\\"%d"}', b'{"a":%d}', b"plain %d",
]  # fmt: skip


def test_objects_of_known_kinds_become_the_same_json(monkeypatch):
    """Once kinds of objects are known, the lines are the same as before, whatever kinds follow."""
    monkeypatch.setattr(ObjectFinder, "LEARN_AFTER", 3)
    chance = random.Random(10)
    learned = set()
    for _ in range(60):
        form = NdjsonForm()
        some = chance.sample(KINDS, 8)
        for first in range(0, 200, 20):
            lines = [chance.choice(some) % chance.randrange(99) + b"\n" for _ in range(20)]
            group = LineGroup(first, 20, 0, "output", partial=False, raw=b"".join(lines))
            expected = list(map(NdjsonForm().encode, line_by_line([group])))

            assert list(form.encode_each(group)) == expected
        learned.add(len(form._finder._kinds))
    assert max(learned) == ObjectFinder.MOST_KINDS


def test_kind_with_many_keys_is_not_learned(monkeypatch):
    """Its regular expression would stop the host's threads for most of a second."""
    monkeypatch.setattr(ObjectFinder, "LEARN_AFTER", 1)
    finder = ObjectFinder()
    wide = ", ".join(f'"key{number}": 1' for number in range(1000))

    for line in (f"{{{wide}}}".encode(), b'{"a": 1}'):
        assert [found for _, found in finder.find(b"\n" + line + b"\n")] == [line]
    assert len(finder._kinds) == 1


def test_group_is_cut_between_lines():
    """A part of a group has the lines of that part."""
    chance = random.Random(4)
    for group in groups(chance, 60):
        lines = line_by_line([group])
        for begin, end in itertools.product(range(group.first, group.end + 1), repeat=2):
            if begin < end:
                part = group.between(begin, end)
                assert line_by_line([part]) == lines[begin - group.first : end - group.first]


def test_header_decides_the_number_of_lines():
    """If the text of a frame has more or fewer lines than its header says, the header counts."""
    fewer = LineGroup(5, 3, 0, "output", partial=False, raw=b"a\nb")
    more = LineGroup(5, 1, 0, "output", partial=False, raw=b"a\nb\n")

    assert [line.raw for line in Lines.of([fewer])] == [b"a\n", b"b", b""]
    assert (fewer.messages, more.messages) == (b"a\nb\n\n", b"a\n")
    assert [line.raw for line in Lines.of([more])] == [b"a\n"]


def test_begun_iterator_is_not_taken_in_groups():
    """Whoever has taken a line gets the other lines, in every form."""
    some = groups(random.Random(5), 10)
    lines = line_by_line(some)
    text, objects, printed = Lines.of(some), Lines.of(some), Lines.of(some)

    assert [next(text), next(objects), next(printed)] == [lines[0]] * 3
    assert list(wire.text(text)) == [line.raw for line in lines[1:]]
    assert list(wire.ndjson(objects)) == list(wire.ndjson(lines[1:]))
    assert taken_in_groups(printed) is None
    assert taken_in_groups(iter(lines)) is None


def test_unfinished_lines_come_after_the_groups():
    """An unfinished line at the end of a log is in JSON where it is wanted, and never in text."""
    some = groups(random.Random(6), 3)
    prompt = LogLine(None, 7, "output", b"name? ", partial=True)

    assert list(Lines.of(some, [prompt]))[-1] == prompt
    assert b"".join(wire.text(Lines.of(some, [prompt]))) == b"".join(one.raw for one in some)
    assert json.loads(list(wire.ndjson(Lines.of(some, [prompt]), unfinished=True))[-1]) == dict(
        prompt
    )
    assert list(wire.ndjson(Lines.of(some, [prompt]))) == list(wire.ndjson(Lines.of(some)))


@pytest.fixture
def logged(scripted):
    """Return a job with frames of all kinds in its spool, and its lines."""
    run = scripted()
    chance = random.Random(8)
    for _ in range(40):
        flags = chance.choice([0, 0, 0, frames.PARTIAL])
        lines = [chance.choice(TEXTS) + b"\n" for _ in range(1 if flags else 7)]
        run.write(*lines, flags=flags, stream=chance.choice([frames.STDOUT, frames.STDERR]))
    run.exit()
    run.die()
    return run


def test_every_reader_gets_the_same_lines(jobs, logged, monkeypatch):
    """Text, JSON, responses and export agree with the lines, from any line on; none makes them."""
    lines = list(jobs.logs(logged.id))
    texts = [line.raw for line in lines]
    objects = [json.dumps(line.to_object(), ensure_ascii=False).encode() + b"\n" for line in lines]
    exported = list(jobs.export_jobs([logged.id]))
    monkeypatch.setattr("jobcore.log_lines.log_lines", None)

    for first in (0, 1, 3, 7, 100, len(lines) - 1):
        assert list(jobs.log_text(logged.id, first)) == texts[first:]
        assert list(jobs.log_ndjson(logged.id, first)) == objects[first:]
        for media_type, expected in (("text/plain", texts), ("application/x-ndjson", objects)):
            response = wire.log_response(jobs, logged.id, sequence=first, accept=media_type)
            assert b"".join(response.body) == b"".join(expected[first:])
    assert list(jobs.export_jobs([logged.id])) == exported
    assert len(lines) == jobs.get_job(logged.id).line_count
    with pytest.raises(TypeError):
        list(jobs.logs(logged.id))  # it is this that makes lines


@pytest.mark.parametrize("ndjson", [False, True])
def test_log_in_a_pipe_is_printed_in_groups(jobs, logged, monkeypatch, tmp_path, ndjson):
    """`jobcore logs` prints what `log_text` and `log_ndjson` return, and continues in order."""
    kept = jobs.log_ndjson if ndjson else jobs.log_text
    expected = b"".join(kept(logged.id, 5))
    count = jobs.get_job(logged.id).line_count
    monkeypatch.setattr("jobcore.log_lines.log_lines", None)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        printer = LogPrinter(5, ndjson=ndjson)
        printer.print(jobs.logs(logged.id, 5))

    assert (tmp_path / "out").read_bytes() == expected
    assert printer.next_sequence == count


def test_many_lost_lines_are_not_made_at_once():
    """A million lines that stand for lost ones are read in lists of limited length."""
    lost = 3 * LINES_AT_ONCE + 1
    group = LineGroup(0, lost, 0, "system", partial=False, raw=b"\n" * lost)
    sizes = [len(piece) for piece in Lines.of([group]).feed.pieces()]

    assert sizes == [LINES_AT_ONCE] * 3 + [1, 0]
    assert sum(1 for _ in Lines.of([group])) == lost
    items = list(NdjsonForm().encode_group(group))
    assert max(map(len, items)) < LINES_AT_ONCE * 100
    assert b"".join(items).count(b"\n") == lost
    assert b"".join(items).splitlines() == [one[:-1] for one in NdjsonForm().encode_each(group)]


@pytest.mark.parametrize("form", [NdjsonForm, EventForm])
def test_encoded_lost_lines_are_not_held_at_once(form):
    """The memory for many lines that stand for lost ones is less than a fifth of their bytes."""
    lost = 50 * LINES_AT_ONCE
    group = LineGroup(0, lost, 0, "system", partial=False, raw=b"\n" * lost)
    tracemalloc.start()
    try:
        size = sum(map(len, form().encode_each(group)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < size / 5


def test_log_deleted_while_it_is_read_ends_with_its_error(jobs, scripted, monkeypatch):
    """A reader of groups gets JobDeleted at the next segments, as a reader of lines does."""
    monkeypatch.setattr(waiting, "FEW_READ", 1)
    run = scripted()
    for _ in range(10):
        run.write(b"x" * 65000 + b"\n")
    run.exit()
    run.die()
    jobs.get_job(run.id)
    readers = [jobs.log_text(run.id), jobs.log_ndjson(run.id), jobs.logs(run.id)]
    for reader in readers:
        next(reader)
    jobs.delete_job(run.id)

    for reader in readers:
        with pytest.raises(JobDeleted):
            list(reader)
