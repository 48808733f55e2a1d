"""Locales: a command gets the same bytes, whatever encoding its submitter and its host have."""

from __future__ import annotations

import os
import subprocess
import sys

from jobcore import JobManager
from tests.processes import PATIENCE, ROOT
from tests.programs import python

#: An interpreter whose encoding is ASCII, and one whose is UTF-8.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
UTF_8 = {"PYTHONUTF8": "1"}

#: Text that is UTF-8, and bytes that are none.
TEXT, BYTES = "geheimé€𝄞".encode(), b"\xff\xfe \xe9 \x80"
TELLS = python("""
import os, sys
print([os.fsencode(word) for word in sys.argv[1:]])
print(os.environb[b"TEXT"], os.environb[b"BYTES"], os.getcwdb())
""")

MAKE = """
import os, sys
from jobcore import JobManager
*databases, cwd, text, raw = sys.argv[1].split(":")
for database in databases:
    with JobManager(database, slots=0) as jobs:
        jobs.submit(
            [*sys.argv[2:], text, raw, os.fsencode(raw), os.fsencode(text)],
            env={"TEXT": text, "BYTES": os.fsencode(raw)}, cwd=cwd,
        )
        jobs.submit(["cat", os.path.join(cwd, "said")], redact=[text, os.fsencode(raw)])
        jobs.submit(["cat"], stdin=os.path.join(cwd, "said"))
"""
RUN = """
import sys
from jobcore import JobManager
patience, *databases = sys.argv[1:]
for database in databases:
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        jobs.drain(float(patience))
"""


def _program(source, *args, locale):
    """Run a program in a locale; its words are bytes."""
    done = subprocess.run(
        [sys.executable, "-c", source, *args],
        capture_output=True,
        timeout=2 * PATIENCE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **locale},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")


def test_a_command_gets_the_bytes_that_it_was_made_with(tmp_path):
    """Words, environment, directory and what is masked are the maker's bytes in any locale."""
    cwd = os.fsencode(tmp_path) + b"/" + TEXT + BYTES
    os.mkdir(cwd)
    with open(cwd + b"/said", "wb") as file:
        file.write(b"a " + TEXT + b" b " + BYTES + b" c\n")
    locales = {"ASCII": ASCII, "UTF-8": UTF_8}
    files = {(made, run): f"{tmp_path}/{made} {run}.db" for made in locales for run in locales}
    for name, locale in locales.items():
        makes = [os.fsencode(path) for (made, _), path in files.items() if made == name]
        _program(MAKE, b":".join([*makes, cwd, TEXT, BYTES]), *TELLS, locale=locale)
    for name, locale in locales.items():
        runs = [path for (_, run), path in files.items() if run == name]
        _program(RUN, str(PATIENCE), *runs, locale=locale)

    for where, database in files.items():
        with JobManager(database, slots=0) as jobs:
            made = sorted(jobs.list_jobs(), key=lambda job: job.number)
            said = [[line.raw.rstrip(b"\n") for line in jobs.logs(job.id)] for job in made]
        assert said == [
            [
                repr([TEXT, BYTES, BYTES, TEXT]).encode(),
                f"{TEXT} {BYTES} {cwd}".encode(),
            ],
            [b"a *** b *** c"],
            [b"a " + TEXT + b" b " + BYTES + b" c"],
        ], where
        assert {(str(job.reason), job.exit_code) for job in made} == {("exited", 0)}, where
