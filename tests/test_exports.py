"""Exports: what is public is named, documented, and nothing else is in sight."""

from __future__ import annotations

import ast
import inspect
import re
import types

import pytest

import jobcore
from jobcore import JobManager, errors
from tests.processes import ROOT

PUBLIC = {name: getattr(jobcore, name) for name in jobcore.__all__}
VERBS = {
    name: verb for name, verb in vars(JobManager).items()
    if not name.startswith("_") and inspect.isfunction(verb)
}  # fmt: skip


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


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.isupper()])
def test_public_name_has_a_docstring(name):
    """Every public class says of itself and of each of its public methods what they are."""
    value = PUBLIC[name]
    members = [
        member for key, member in vars(value).items()
        if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    ]  # fmt: skip

    assert value.__doc__
    assert "jobcore" not in (value.__doc__.splitlines() or [""])[0].split()[:1]
    assert [member for member in members if not member.__doc__] == []


@pytest.mark.parametrize("name", VERBS)
def test_verb_says_what_it_raises(name):
    """Every verb that takes an id or input says which errors it raises, by their real names."""
    verb = VERBS[name]
    text = inspect.getdoc(verb)
    raised = re.findall(r"^ {4}([A-Z][\w, ]+):", text.partition("Raises:")[2], re.MULTILINE)
    names = [one for part in raised for one in part.split(", ")]
    takes_input = [one for one in inspect.signature(verb).parameters if one != "self"]
    known = {**vars(jobcore), "ValueError": ValueError, "OSError": OSError, "TypeError": TypeError}
    refers = "rrors are those of" in text or "errors are those of" in text

    assert not takes_input or names or refers or name == "create_workspace"
    assert [one for one in names if not inspect.isclass(known.get(one))] == []


@pytest.mark.parametrize("name", VERBS)
def test_verb_names_its_arguments(name):
    """A docstring's `Args` are arguments that the verb has, in their order."""
    verb = VERBS[name]
    section = inspect.getdoc(verb).partition("Args:\n")[2].partition("\n\n")[0]
    said = re.findall(r"^ {4}(\w+):", section, re.MULTILINE)
    has = [one for one in inspect.signature(verb).parameters if one != "self"]

    assert said == [one for one in has if one in said]


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
