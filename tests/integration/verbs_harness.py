"""Verbs: many of the command line in one interpreter, whose start takes longer than all of them."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress

from tests.processes import PATIENCE, ROOT

_SOURCE = """
import json, sys
from jobcore.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["jobcore", *words]
    try:
        main()
    except SystemExit as end:
        print("--- exit", end.code or 0, file=sys.__stdout__, flush=True)
"""
_END = re.compile(r"--- exit \d+\r?\n")


def in_a_pipe(database, verbs, **environment):
    """Return what each of `verbs`, lists of words, says on stdout, and then all of stderr."""
    done = subprocess.run(
        _command(verbs), capture_output=True, timeout=PATIENCE,
        env=_environment(database) | environment, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return [*_parts(done.stdout.decode(), verbs), done.stderr.decode()]


def on_a_terminal(database, verbs, **environment):
    """Return what a terminal of 120 columns gets from each of `verbs`, lists of words."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        _command(verbs), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
        env=_environment(database) | environment,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # EIO: it has closed the other side
            while data := os.read(ours, 65536):
                shown += data
        os.close(ours)
        assert process.wait(PATIENCE) == 0, shown
    encoding = environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    return _parts(shown.decode(encoding), verbs)


def _command(verbs):
    return [sys.executable, "-c", _SOURCE, json.dumps(verbs)]


def _environment(database):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JOBCORE_DB": database}
    environment.pop("LINES", None)  # that of whoever runs the tests
    return {**environment, "TERM": "xterm", "COLUMNS": "120"}


def _parts(text, verbs):
    *parts, rest = _END.split(text)
    assert (len(parts), rest) == (len(verbs), ""), text
    return parts
