"""Redaction: a value to be masked reaches no disk, wherever writes, reads and pieces cut it."""

from __future__ import annotations

import base64
import json
import marshal
import os
import sqlite3
from contextlib import closing
from urllib.parse import quote_plus

import pytest

from jobcore import Command, Status
from jobcore.supervisor.frames import MAX_PAYLOAD
from tests.processes import PATIENCE, run_python, until
from tests.programs import python

#: A value whose stored form is not its own: the database has it in the command, in
#: JSON, where every third of these characters is escaped. So its bytes in any file are a leak.
CANARY = "k\u00e47\u00df-Q\u00f69\u00fc-z\u00e43"
SECRET = CANARY.encode()

#: Writes pieces, each when all before has been read: so each is a read of its own.
#: They come disguised, as what a command is given on stdin is stored, too.
WRITES_IN_PIECES = python("""
import fcntl, marshal, os, sys, time
FIONREAD = 0x541B
for descriptor, piece in marshal.loads(bytes(byte ^ 0x55 for byte in sys.stdin.buffer.read())):
    if descriptor == 0:  # wait, until the file is there
        while not os.path.exists(piece):
            time.sleep(0.001)
        continue
    while piece:
        piece = piece[os.write(descriptor, piece):]
    while any(fcntl.ioctl(descriptor, FIONREAD, bytes(4))):
        time.sleep(0.0001)
""")


def in_pieces(pieces, **options):
    """Return a command that writes these pieces, each with its descriptor."""
    stdin = bytes(byte ^ 0x55 for byte in marshal.dumps(pieces))
    return Command(WRITES_IN_PIECES, stdin=stdin, **{"redact": [CANARY], **options})


def run(jobs, pieces, **options):
    """Run it to its end, and return the job."""
    job = jobs.wait(jobs.submit(in_pieces(pieces, **options)).id, PATIENCE)
    assert (job.status, job.exit_code) == (Status.COMPLETE, 0), said(jobs, job)
    return job


def said(jobs, job, stream="output"):
    """Return what the log has of one stream."""
    return b"".join(line.raw for line in jobs.logs(job.id) if line.stream == stream)


#: Prints which files below a folder have one of these words in them, as name and word in hex.
SEARCHES = """
import os, stat, sys
folder, *words = sys.argv[1:]
for path, _, names in os.walk(folder):
    for name in names:
        try:
            descriptor = os.open(os.path.join(path, name), os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            continue  # imported, and gone
        with open(descriptor, "rb") as file:
            data = file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        for word in words:
            if bytes.fromhex(word) in data:
                print(name, word)
"""


def on_disk(database, words):
    """
    Return which files have one of these words in them, at this moment.

    Another process reads them: closing the database's files here would drop SQLite's locks.
    """
    found = run_python(SEARCHES, os.path.dirname(database), *(word.hex() for word in words))
    return found.splitlines()


def in_rows(database, words):
    """Return which columns have one of these, other than the command, which has to have it."""
    found = []
    with closing(sqlite3.connect(database)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            cursor = connection.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in cursor.description]
            for row in cursor:
                for column, value in zip(columns, row, strict=True):
                    text = value if isinstance(value, bytes) else str(value).encode()
                    if (table, column) not in [("job", "command"), ("pipeline", "command")]:
                        found += [(table, column, word) for word in words if word in text]
    return found


@pytest.mark.parametrize("separate", [False, True], ids=["merged", "separate"])
@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_value_cut_by_two_reads(running_jobs, separate, descriptor):
    """Wherever the cut is, in whatever stream, and with three reads, the value is masked."""
    pieces, expected = [], b""
    for cut in range(1, len(SECRET)):
        pieces += [(descriptor, b"<" + SECRET[:cut]), (descriptor, SECRET[cut:] + b">\n")]
        expected += b"<***>\n"
    for cut in range(1, len(SECRET) - 1):
        thirds = (b"<" + SECRET[:cut], SECRET[cut : cut + 1], SECRET[cut + 1 :] + b">\n")
        pieces += [(descriptor, third) for third in thirds]
        expected += b"<***>\n"
    job = run(running_jobs, pieces, separate_streams=separate)

    stream = ("stdout", "stderr")[descriptor - 1] if separate else "output"
    assert said(running_jobs, job, stream) == expected


def test_a_writer_that_trickles(running_jobs):
    """Output that comes a byte at a time is masked like output that comes at once, to its end."""
    text = b"a" + SECRET + b"\n" + SECRET * 2 + SECRET[:-1] + b"\n" + SECRET[:5]
    job = run(running_jobs, [(1, text[at : at + 1]) for at in range(len(text))])

    assert said(running_jobs, job) == text.replace(SECRET, b"***")


def test_value_split_across_two_streams_is_not_masked(running_jobs):
    """With separate streams each is masked by itself; with one pipe its bytes decide."""
    pieces = [(1, SECRET[:5]), (2, b"between\n"), (1, SECRET[5:] + b"\n")]
    apart = run(running_jobs, pieces, separate_streams=True)
    together = run(running_jobs, [(1, SECRET[:5]), (2, SECRET[5:] + b"\n")])

    assert said(running_jobs, apart, "stdout") == b"***\n"
    assert said(running_jobs, together) == b"***\n"


def test_a_value_where_a_long_line_is_cut(running_jobs):
    """The cut of a long line goes through no value, though reads and cut meet there."""
    pieces, expected = [], b""
    for shift in (1, 7, len(SECRET) - 1, len(SECRET)):
        begin = b"x" * (MAX_PAYLOAD - shift)
        pieces += [(1, begin), (1, SECRET[:shift]), (1, SECRET[shift:] + b"y" * 99 + b"\n")]
        expected += begin + b"***" + b"y" * 99 + b"\n"
    job = run(running_jobs, pieces)

    assert said(running_jobs, job) == expected


def test_values_that_meet(running_jobs):
    """All their bytes are masked, overlapping ones together; nothing shows where they meet."""
    values = ["abc", "abcdef", "defghi", "one\ntwo", "\u00fc"]
    text = b"abc|abcd|abcde|abcdef|abcdefghi|defghi|one\ntwo|one\nthree|\xc3\xbc|abcde"
    expected = b"***|***d|***de|***|***|***|***|one\nthree|***|***de"
    whole = run(running_jobs, [(1, text)], redact=values)
    trickled = run(running_jobs, [(1, text[at : at + 1]) for at in range(len(text))], redact=values)

    assert said(running_jobs, whole) == expected
    assert said(running_jobs, trickled) == expected


#: What each encoder has to escape, and how a program writes it.
ESCAPED = 'pa"ss\\w\u00f6rd\n+%'
WRITTEN = {
    "json": json.dumps(ESCAPED),
    "json utf-8": json.dumps(ESCAPED, ensure_ascii=False),
    "json in json": json.dumps(json.dumps({"inner": ESCAPED})),
    "url": json.dumps(f"https://x?password={quote_plus(ESCAPED)}&b=c"),
    "repr": json.dumps(repr({"password": ESCAPED})),
    "base64": json.dumps(base64.b64encode(f"me:{ESCAPED}".encode()).decode()),
}


@pytest.mark.parametrize("separate", [False, True], ids=["merged", "separate"])
@pytest.mark.parametrize("form", WRITTEN)
def test_a_value_in_an_object_is_not_given_back(running_jobs, form, separate):
    """A line stays an object whose fields have the mask, wherever two reads cut it."""
    line = f'{{"event": "connect", "given": {WRITTEN[form]}, "n": 1}}\n'.encode()
    pieces = []
    for cut in range(30, len(line) - 10, 7):
        pieces += [(1, line[:cut]), (1, line[cut:])]
    job = run(running_jobs, pieces, redact=[ESCAPED], separate_streams=separate)
    lines = list(running_jobs.logs(job.id))

    assert len(lines) == len(pieces) // 2
    assert len({one.text for one in lines}) == 1
    given = lines[0].fields["given"]
    assert "***" in given
    assert ESCAPED not in given
    assert "w\u00f6rd" not in given
    assert (lines[0].fields["event"], lines[0].fields["n"]) == ("connect", 1)
    while form == "json in json" and isinstance(given, (str, dict)) and given != "***":
        given = json.loads(given) if isinstance(given, str) else given["inner"]
    if form in ("json", "json utf-8", "json in json"):
        assert given == "***"


@pytest.mark.parametrize("form", WRITTEN)
def test_a_written_value_in_a_line_that_is_not_finished(running_jobs, database, tmp_path, form):
    """Neither what is shown of the line nor any file has half of it, before and after the cut."""
    word = WRITTEN[form][1:-1].encode()
    half = len(word) * 2 // 3
    go = [os.fsencode(tmp_path / f"go{number}") for number in range(2)]
    pieces = [(1, b"Password " + word[:half]), (0, go[0]), (1, word[half:] + b"? "), (0, go[1])]
    job = running_jobs.submit(in_pieces(pieces, redact=[ESCAPED]))
    before = until(lambda: on_disk(database, [b"Password "]), "the beginning of the line")
    leaks = on_disk(database, [word[:half], word[8:half]])
    os.close(os.open(go[0], os.O_CREAT))
    after = until(lambda: on_disk(database, [b"? "]), "the rest of the line")
    leaks += on_disk(database, [word[:half], word[8:half], word[half:]])
    os.close(os.open(go[1], os.O_CREAT))
    job = running_jobs.wait(job.id, PATIENCE)

    assert before
    assert after
    # The database has the command, which has the value.
    assert [one for one in leaks if not one.startswith("jobs.db")] == []
    assert in_rows(database, [word[:half], word[8:half], word[half:]]) == []
    assert b"***" in said(running_jobs, job)
    assert word not in said(running_jobs, job)


@pytest.mark.parametrize("form", ["json", "url", "repr"])
def test_a_written_value_in_reports_and_errors(running_jobs, form):
    """Progress, what is said of a wrong report, and the name of a program are masked as well."""
    word = WRITTEN[form][1:-1].encode()
    half = len(word) // 2
    pieces = [(8, b"1/2 at " + word[:half]), (8, word[half:] + b"\n")]
    pieces += [(8, b"wrong " + word + b"\n"), (1, b"jobcore:progress 2/2 at " + word + b"\n")]
    job = run(running_jobs, pieces, redact=[ESCAPED])
    program = Command([b"/no/such/" + word], redact=[ESCAPED])
    failed = running_jobs.wait(running_jobs.submit(program).id, PATIENCE)

    for text in (job.progress.message, said(running_jobs, job, "system").decode()):
        assert "***" in text
        assert "w\u00f6rd" not in text
        assert "f6rd" not in text
    assert "program not found" in said(running_jobs, failed, "system").decode()
    assert "***" in said(running_jobs, failed, "system").decode()
    assert "rd" not in said(running_jobs, failed, "system").decode().partition("***")[2][:9]
    assert "***" in repr(program)
    assert word.decode() not in repr(program)


@pytest.mark.parametrize("descriptor", [8, 1])
def test_a_value_in_a_report(running_jobs, database, descriptor):
    """A report of progress is masked wherever it is cut, and the job has it so."""
    report = (b"jobcore:progress " if descriptor == 1 else b"") + b"1/2 with " + SECRET + b" in\n"
    for cut in (len(report) - len(SECRET) - 2, len(report) - 7, len(report) - 5):
        job = run(running_jobs, [(descriptor, report[:cut]), (descriptor, report[cut:])])

        assert job.progress.message == "with *** in"
        assert job.line_count == 0
    assert in_rows(database, [SECRET, CANARY.encode("utf-16-le")]) == []


def test_malformed_report_is_masked(running_jobs):
    """What is said of a wrong report is masked, and so is what is dropped of it."""
    job = run(running_jobs, [(8, b"nonsense with " + SECRET[:4]), (8, SECRET[4:] + b"\n")])

    system = said(running_jobs, job, "system").decode()
    assert system == "a malformed progress report is dropped: 'nonsense with ***'\n"


@pytest.mark.parametrize(
    "value",
    [CANARY, "it's", "back\\slash", "both \" and '", "two\nlines", "tab\there", b"\xff\xfe!"],
    ids=ascii,
)
def test_value_in_a_system_line_is_masked(running_jobs, value):
    """A program or directory that is not found is named without the value, however it is quoted."""
    word = os.fsdecode(value)
    program = Command([f"/no/such/{word}/program"], redact=[value])
    folder = Command(["true"], cwd=f"/no/such/{word}/folder", redact=[value])
    for command, words in (
        (program, "cannot start '/no/such/***/program': program not found (ENOENT)\n"),
        (folder, "cannot enter its directory '/no/such/***/folder': no such file"),
    ):
        job = running_jobs.wait(running_jobs.submit(command).id, PATIENCE)

        assert words in said(running_jobs, job, "system").decode()


def test_no_file_has_a_value_at_any_moment(running_jobs, database, tmp_path):
    """Neither whole nor half of it: not while it is half written, not later, not at the end."""
    go = [os.fsencode(tmp_path / f"go{number}") for number in range(4)]
    half = len(SECRET) // 2
    pieces = [
        (1, b"one " + SECRET + b"\ntwo " + SECRET[:half]),
        (8, b"1/9 with " + SECRET[:half]),
        (0, go[0]),
        (1, SECRET[half:] + b"\n"),
        (8, SECRET[half:] + b"\n"),
        (0, go[1]),
        *[(2, SECRET[at : at + 1]) for at in range(len(SECRET))],
        (1, b"\n" + b"x" * (MAX_PAYLOAD + 9) + SECRET[:half]),
        (0, go[2]),
        (1, SECRET[half:] + b"\n"),
        (0, go[3]),
        (1, b"last " + SECRET),
    ]
    words = [SECRET, SECRET[:half], SECRET[half:]]
    job = running_jobs.submit(in_pieces(pieces))
    leaks = []
    reached = (1, 2, 4, 5)  # lines that are there when it waits
    for gate, lines in zip(go, reached, strict=True):
        until(
            lambda lines=lines: running_jobs.get_job(job.id).line_count >= lines,
            f"{lines} lines",
        )
        leaks += on_disk(database, words) + in_rows(database, words)
        os.close(os.open(gate, os.O_CREAT))
    job = running_jobs.wait(job.id, PATIENCE)
    leaks += on_disk(database, words) + in_rows(database, words)

    assert leaks == []
    assert said(running_jobs, job) == (
        b"one ***\ntwo ***\n***\n" + b"x" * (MAX_PAYLOAD + 9) + b"***\nlast ***"
    )
    assert job.progress.message == "with ***"
