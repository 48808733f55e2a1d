"""Exports: what is public is named, and nothing else is in sight."""

from __future__ import annotations

import ast
import base64
import importlib
import inspect
import pickle
import re
import textwrap
import types

import pytest

import jobcore
from jobcore import errors
from tests.processes import ROOT, run_python


def test_all_is_what_is_visible():
    """`__all__` names everything that is visible beside modules, and nothing that is not."""
    visible = [name for name in dir(jobcore) if not name.startswith("_")]
    defined = {
        name for name, value in vars(jobcore).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }  # fmt: skip
    starred: dict[str, object] = {}
    exec("from jobcore import *", starred)
    del starred["__builtins__"]

    assert sorted(jobcore.__all__) == visible == sorted(starred)
    assert defined - {*visible, "TYPE_CHECKING", "Any"} == set()
    assert all(value is getattr(jobcore, name) for name, value in starred.items())


def test_names_are_loaded_from_where_type_checkers_see_them():
    """What a name is at run time is what a checker takes it for."""
    (checked,) = (
        block.body for block in ast.parse((ROOT / "jobcore" / "__init__.py").read_text()).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
    )  # fmt: skip
    seen = {
        alias.name: node.module
        for node in checked
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert set(seen) == set(jobcore.__all__)
    for name, module in seen.items():
        assert getattr(importlib.import_module(module), name) is getattr(jobcore, name)


def test_unknown_names_are_attribute_errors():
    """A missing name is an AttributeError, and loads no module."""
    assert not hasattr(jobcore, "JobManger")
    assert not hasattr(jobcore, "_private")
    assert not hasattr(jobcore, "__wrapped__")
    with pytest.raises(AttributeError, match=r"module 'jobcore' has no attribute 'job'"):
        jobcore.job  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'JobManger'"):
        exec("from jobcore import JobManger")


FRESH = {
    "a module of the package": "jobcore.errors.JobNotFound; jobcore.wire.ndjson; jobcore.testing",
    "all names load no more once there is a manager": """
        jobcore.JobManager
        before = {*sys.modules}
        [getattr(jobcore, name) for name in jobcore.__all__]
        before.add("jobcore.job_context")  # what a job needs, and no manager
        assert {*sys.modules} == before, {*sys.modules} - before
    """,
    "a value from another process": """
        import base64, pickle
        assert pickle.loads(base64.b64decode(PICKLED)) == jobcore.Status.ERROR
    """,
    "what a module needs is missing": """
        sys.modules["pytest"] = None
        try:
            jobcore.pytest_plugin
        except ModuleNotFoundError as error:
            assert error.name == "pytest", error
        else:
            raise AssertionError
    """,
    "many threads at once": """
        import threading
        found, barrier = [], threading.Barrier(8)
        def use(name):
            barrier.wait()
            found.append(getattr(jobcore, name))
        names = ["JobManager", "Job", "Task", "Status"] * 2
        threads = [threading.Thread(target=use, args=(name,)) for name in names]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(found) == 8 and {*found} == {getattr(jobcore, name) for name in names}
    """,
    "a signal handler": """
        import signal
        found = []
        signal.signal(signal.SIGUSR1, lambda *_: found.append(jobcore.JobManager))
        signal.raise_signal(signal.SIGUSR1)
        assert found == [jobcore.JobManager]
    """,
    "an interrupt in the middle, and again": """
        class Interrupts:
            armed = True
            def find_spec(self, name, path=None, target=None):
                if self.armed and name == AT:
                    self.armed = False
                    raise KeyboardInterrupt
        for AT in (
            "jobcore.manager", "jobcore.storage.tables", "jobcore.storage.job_rows",
            "jobcore.operations.tasks",
        ):
            sys.meta_path.insert(0, Interrupts())
            try:
                jobcore.JobManager
            except KeyboardInterrupt:
                pass
            del sys.meta_path[0]
        with jobcore.JobManager(FOLDER + "/jobs.db", slots=0) as jobs:
            assert jobs.list_jobs() == []
    """,
    "a child that is forked before the first use": """
        import os
        child = os.fork()
        if child == 0:
            jobcore.JobManager(FOLDER + "/jobs.db", slots=0).close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """,
}


@pytest.mark.parametrize("what", FRESH)
def test_first_use_of_a_name_works(what, tmp_path):
    """A name is loaded wherever it is first used, and from several places at once."""
    value = base64.b64encode(pickle.dumps(jobcore.Status.ERROR)).decode()
    source = textwrap.dedent(FRESH[what]).replace("PICKLED", repr(value))
    source = source.replace("FOLDER", repr(str(tmp_path)))

    begun = f"import os, sys, jobcore\nos.chdir({str(tmp_path)!r})\n"
    assert run_python(begun + source) == ""


def test_all_is_sorted():
    """`__all__` is in the order that the linter keeps: constants, classes, the rest."""
    constants = [name for name in jobcore.__all__ if name.isupper()]
    classes = [name for name in jobcore.__all__ if not name.isupper()]

    assert [*sorted(constants), *sorted(classes)] == jobcore.__all__


def test_every_error_is_public():
    """Whatever jobcore raises, a caller can name."""
    kinds = {
        name for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, jobcore.JobcoreError)
    }  # fmt: skip

    assert kinds - set(jobcore.__all__) == set()


def test_manager_is_a_facade():
    """JobManager's module has no SQL, no system calls and no threads: it delegates."""
    path = ROOT / "jobcore" / "manager.py"
    tree = ast.parse(path.read_text())
    checked_only = {
        node for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }  # fmt: skip
    imported = {
        module.split(".")[0]
        for node in ast.walk(tree)
        if node not in checked_only
        for module in (
            [node.module] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else []
        )
    }  # fmt: skip
    texts = [
        node.value for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        and re.search(r"\b(SELECT|INSERT|UPDATE|DELETE|PRAGMA)\b", node.value)
    ]  # fmt: skip

    harmless = {"jobcore", "collections", "typing", "__future__", "contextlib", "uuid", "weakref"}

    assert imported - harmless == set()
    assert texts == []
