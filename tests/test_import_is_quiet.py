"""Importing jobcore, or all of its names, does nothing: no thread, file, handler or child."""

from __future__ import annotations

import json
import sys

import pytest

from tests.processes import run_python

LOOK = """
import json, logging, os, signal, sys, threading
found = {"opened": [], "started": []}
signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
descriptors = sorted(os.listdir("/proc/self/fd"))
mask = os.umask(0); os.umask(mask)
environment, directory = dict(os.environ), os.getcwd()
hooks = [sys.excepthook, threading.excepthook, sys.unraisablehook]
here = len(sys.modules)

def audit(name, args):
    if name == "open" and isinstance(args[0], str):
        # The interpreter's own: sources, compiled ones, extensions, packages' metadata.
        own = (".py", ".pyc", ".so", ".pth", "METADATA", ".txt", ".toml", ".zip")
        if not args[0].endswith(own):
            found["opened"].append(args[0])
    elif name in ("subprocess.Popen", "os.fork", "os.posix_spawn", "_thread.start_new_thread",
                  "sqlite3.connect", "socket.__new__", "os.mkdir", "os.system", "ctypes.dlopen"):
        found["started"].append(name)

sys.addaudithook(audit)
IMPORT
found["threads"] = threading.active_count()
found["signals"] = {n: signal.getsignal(n) for n in signals} == signals
found["descriptors"] = sorted(os.listdir("/proc/self/fd")) == descriptors
found["handlers"] = logging.getLogger().handlers + logging.getLogger("jobcore").handlers
found["umask"] = os.umask(mask) == mask
found["world"] = (dict(os.environ), os.getcwd()) == (environment, directory)
found["hooks"] = hooks == [sys.excepthook, threading.excepthook, sys.unraisablehook]
found["modules"] = sorted(sys.modules)
sys.stdout.write(json.dumps(found))
"""


def look(statement, *flags):
    """Return what an import does in a fresh interpreter; other output fails to parse."""
    # `-B`: bytecode files, and their folder, are what the interpreter writes.
    flags = ("-B", "-X", "utf8", *flags)
    return json.loads(run_python(LOOK.replace("IMPORT", statement), flags=flags))


@pytest.fixture(scope="module")
def jobcore_import():
    """Return what importing all of jobcore's names does."""
    return look("from jobcore import *")


@pytest.fixture(scope="module")
def sqlmodel_import():
    """Return what importing sqlmodel does."""
    return look("import sqlmodel")


def test_import_starts_nothing(jobcore_import, sqlmodel_import):
    """No thread, process, connection, socket or directory comes with the import."""
    assert jobcore_import["threads"] == 1
    assert set(jobcore_import["started"]) <= set(sqlmodel_import["started"])


def test_import_opens_no_file(jobcore_import, sqlmodel_import):
    """Beyond modules no file is read or written, and no descriptor stays open."""
    assert set(jobcore_import["opened"]) <= set(sqlmodel_import["opened"])
    assert jobcore_import["descriptors"] is True


def test_import_changes_nothing(jobcore_import):
    """Signals, handlers, hooks, umask, environment and directory are as before."""
    assert jobcore_import["handlers"] == []
    for what in ("signals", "umask", "world", "hooks"):
        assert (what, jobcore_import[what]) == (what, True)


def test_import_leaves_costly_modules_out(jobcore_import, sqlmodel_import):
    """What only some hosts need is loaded by them: structlog, subprocess, the command line."""
    beyond = set(jobcore_import["modules"]) - set(sqlmodel_import["modules"])
    costly = {
        "structlog", "subprocess", "typer", "rich", "click", "multiprocessing", "asyncio",
        "jobcore.cli", "jobcore.cli.job_commands", "jobcore.cli.output",
        "jobcore.supervisor.__main__", "jobcore.supervisor.execution",
    }  # fmt: skip

    assert beyond & costly == set()


def test_import_of_the_package_alone_loads_no_module_of_it():
    """Names are loaded at their first use: `import jobcore` is one module, and needs no library."""
    loaded = set(look("import jobcore")["modules"]) - set(
        look("import importlib, typing")["modules"]
    )

    assert loaded == {"jobcore"}


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("Status", {"jobcore", "jobcore.lifecycle"}),
        ("JobNotFound", {"jobcore", "jobcore.errors"}),
        ("Command", {"jobcore", "jobcore.checks", "jobcore.errors", "jobcore.command"}),
        ("SystemClock", {"jobcore", "jobcore.clock"}),
    ],
)
def test_small_names_load_no_library(name, modules):
    """A status, an error or a command does without the database and the models."""
    loaded = look(f"from jobcore import {name}")["modules"]

    assert {one for one in loaded if one.partition(".")[0] == "jobcore"} == modules
    assert {"sqlmodel", "sqlalchemy", "pydantic", "structlog"} & {*loaded} == set()


def test_import_costs_little_beyond_sqlmodel(jobcore_import, sqlmodel_import):
    """Of what jobcore loads, at most a quarter as many modules come on top of sqlmodel's."""
    base = len(sqlmodel_import["modules"])
    beyond = set(jobcore_import["modules"]) - set(sqlmodel_import["modules"])

    assert len(beyond) <= base / 4, sorted(beyond)


def test_import_is_quiet_under_every_warning(jobcore_import):
    """No warning is raised by importing jobcore itself, even where all of them are errors."""
    printed = run_python(
        "import sqlmodel, transitions, warnings\n"
        "warnings.simplefilter('error')\nfrom jobcore import *"
    )

    assert printed == ""
    assert jobcore_import["threads"] == 1
    assert sys.version_info >= (3, 10)
