"""Locales: what a command is given are bytes, whatever encoding its maker and its host have."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
database, cwd, text, raw, *argv = sys.argv[1:]
with JobManager(database, slots=0) as jobs:
    print(jobs.submit(
        [*argv, text, raw, os.fsencode(raw), os.fsencode(text)],
        env={"TEXT": text, "BYTES": os.fsencode(raw)}, cwd=cwd,
    ).id)
    print(jobs.submit(["cat", os.path.join(cwd, "said")], redact=[text, os.fsencode(raw)]).id)
    print(jobs.submit(["cat"], stdin=os.path.join(cwd, "said")).id)
"""
RUN = """
import sys
from jobcore import JobManager
with JobManager(sys.argv[1], slots=1, on_exit="stop") as jobs:
    jobs.drain(float(sys.argv[2]))
"""


def _program(source, *args, locale):
    """Return what a program says that runs in a locale; its words are bytes."""
    done = subprocess.run(
        [sys.executable, "-c", source, *args],
        capture_output=True,
        timeout=2 * PATIENCE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **locale},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("runs", [ASCII, UTF_8], ids=["run in ASCII", "run in UTF-8"])
@pytest.mark.parametrize("makes", [ASCII, UTF_8], ids=["made in ASCII", "made in UTF-8"])
def test_a_command_gets_the_bytes_that_it_was_made_with(database, tmp_path, makes, runs):
    """Words, environment, directory and what is masked are the maker's bytes in any locale."""
    cwd = os.fsencode(tmp_path) + b"/" + TEXT + BYTES
    os.mkdir(cwd)
    with open(cwd + b"/said", "wb") as file:
        file.write(b"a " + TEXT + b" b " + BYTES + b" c\n")
    made = _program(MAKE, database, cwd, TEXT, BYTES, *TELLS, locale=makes)
    _program(RUN, database, str(PATIENCE), locale=runs)

    with JobManager(database, slots=0) as jobs:
        said = [[line.raw.rstrip(b"\n") for line in jobs.logs(job_id)] for job_id in made]
        reasons = {(str(job.reason), job.exit_code) for job in jobs.list_jobs()}
    assert said == [
        [
            repr([TEXT, BYTES, BYTES, TEXT]).encode(),
            f"{TEXT} {BYTES} {cwd}".encode(),
        ],
        [b"a *** b *** c"],
        [b"a " + TEXT + b" b " + BYTES + b" c"],
    ]
    assert reasons == {("exited", 0)}
