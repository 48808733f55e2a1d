"""Verbs of the command line in forks of this process, which has all of it loaded."""

from __future__ import annotations

import importlib
import os
import pkgutil
import pty
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache, partial

import typer.main

import jobcore
from jobcore.cli import commands
from jobcore.cli.app import app
from tests.processes import PATIENCE, ROOT, forked
from tests.verbs import call_all, call_each

# Before any fork, all modules are loaded and all commands are made: that is most of what a short
# one takes.
_LOADED = ["rich.console", "rich.table", "sqlalchemy.dialects.sqlite"]
_LOADED += [module.name for module in pkgutil.walk_packages(jobcore.__path__, "jobcore.")]
for _name in _LOADED:
    if not _name.endswith(("__main__", "pytest_plugin")):  # pytest loads that one itself
        importlib.import_module(_name)
commands.load_all()
typer.main.get_command = cache(typer.main.get_command)
typer.main.get_command(app)

_END = re.compile(r"--- exit \d+\r?\n")
#: For an interpreter of its own, which takes half a second until it has all loaded.
_SOURCE = """
import sys
from tests.verbs import call_each
call_each(eval(sys.argv[1]))
"""
#: What an interpreter reads when it begins, so that a fork is too late for it.
_READ_AT_START = ("LC_ALL", "LANG", "PYTHONUTF8", "PYTHONCOERCECLOCALE")


def in_a_pipe(database, verbs, **environment):
    """Return what each of `verbs`, lists of words, says on stdout, and then all of stderr."""
    with _start(
        database, verbs, environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err.decode()
    return [*_parts(out.decode(), verbs), err.decode()]


def on_a_terminal(database, verbs, **environment):
    """Return what a terminal of 120 columns gets from each of `verbs`, lists of words."""
    ours, theirs = pty.openpty()
    with _start(database, verbs, environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # EIO: it has closed the other side
            while data := os.read(ours, 65536):
                shown += data
        os.close(ours)
        assert process.wait(PATIENCE) == 0, shown
    encoding = environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    return _parts(shown.decode(encoding), verbs)


def _start(database, verbs, environment, **streams):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JOBCORE_DB": database}
    env.pop("LINES", None)  # that of whoever runs the tests
    env |= {"TERM": "xterm", "COLUMNS": "120"} | environment
    streams["stdin"] = subprocess.DEVNULL
    if any(name in environment for name in _READ_AT_START):
        return subprocess.Popen([sys.executable, "-c", _SOURCE, repr(verbs)], env=env, **streams)
    return fork(verbs, env, marked=True, **streams)


def fork(verbs, env, *, marked=False, **options):
    """
    Return a process that does what an interpreter does that begins with `-m jobcore`.

    Args:
        verbs: Lists of words; it runs one behind the other.
        env: Its environment.
        marked: Whether a line behind each tells how it has ended; or the process ends so.
        options: Those of Popen.
    """
    return forked(partial(call_each if marked else call_all, verbs), env, **options)


def _parts(text, verbs):
    *parts, rest = _END.split(text)
    assert (len(parts), rest) == (len(verbs), ""), text
    return parts
