"""Exports: what is public is named, and nothing else is in sight."""

from __future__ import annotations

import ast
import inspect
import re
import types

import jobcore
from jobcore import errors
from tests.processes import ROOT


def test_all_is_what_is_visible():
    """`__all__` names everything that is visible beside modules, and nothing that is not."""
    visible = {
        name for name, value in vars(jobcore).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }  # fmt: skip

    assert set(jobcore.__all__) == visible
    assert len(jobcore.__all__) == len(visible)


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
