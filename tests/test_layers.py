"""The layers hold: the guide's rows against the imports."""

from __future__ import annotations

import ast
import functools
import re
import sys

from tests.processes import ROOT
from tests.texts import between


@functools.cache
def modules():
    """Return the syntax trees of jobcore's modules, by name below the package."""
    found = {}
    for path in sorted((ROOT / "jobcore").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "jobcore").with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    del found["__init__"]  # what callers import; it has no row
    return found


def imports(tree, names):
    """Return the modules of jobcore that a tree imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jobcore":
            for alias in node.names:
                if alias.name == "__version__":
                    continue  # a text of the package itself
                whole = f"{node.module}.{alias.name}".partition(".")[2]
                found.add(whole if whole in names else node.module.partition(".")[2])
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("jobcore")}
    return found


def layers():
    """Return the number of each package in the guide's table, and of each noun, the lowest last."""
    table = between("layers").partition("```text\n")[2].partition("```")[0]
    return {
        name: number
        for number, line in enumerate(table.splitlines())
        for name in re.split(r"\s{2,}", line)[0].split(", ")
    }


#: Entries, which may import everything, and names that older programs still import.
ENTRIES = {"__main__", "pytest_plugin", "entry.libjobcore_pytest", "caller"} | {
    "supervision", "supervision.supervisor",
}  # fmt: skip


def test_every_import_goes_down():
    """A module imports from its own package or from lower ones; what breaks that is named."""
    trees, layer = modules(), layers()

    def of(name):
        return layer.get(name.partition(".")[0], layer["nouns"])

    wrong = [
        f"{name} imports {other}"
        for name, tree in trees.items()
        if name not in ENTRIES
        for other in sorted(imports(tree, trees) - {"__init__"})
        if of(other) < of(name)
    ]

    assert wrong == []


def test_every_package_has_a_layer():
    """No folder of the package is missing from the guide's table, and each has a docstring."""
    folders = {name.partition(".")[0] for name in modules() if "." in name}

    assert folders - {"entry", "supervision"} <= set(layers())
    for folder in folders - {"entry"}:
        assert ast.get_docstring(modules()[folder]), folder


def loaded_by(name):
    """Return the modules that come with one of jobcore's: its own, and those of others."""
    trees = modules()
    todo, seen = [name], {"supervisor"}
    while todo:
        name = todo.pop()
        seen.add(name)
        todo += imports(trees[name], trees) - seen
    outside = {
        module
        for name in seen
        for node in ast.walk(trees[name])
        for module in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if module.split(".")[0] not in {*sys.stdlib_module_names, "jobcore"}
    }
    return seen, outside


def test_supervisor_needs_only_the_standard_library():
    """A supervisor loads its own package and the failpoints, and no other package."""
    seen, outside = loaded_by("supervisor.__main__")

    assert {name for name in seen if not name.startswith("supervisor")} == {"embedding.failpoints"}
    assert outside == set()


def test_function_interpreter_needs_only_the_standard_library():
    """The interpreter that calls a function loads a handful of modules, and no other package."""
    seen, outside = loaded_by("functions.__main__")

    assert {name for name in seen if not name.startswith("supervisor")} == {
        "embedding.failpoints", "functions.__main__", "functions.encoding", "functions.names",
    }  # fmt: skip
    assert outside == set()


#: What a supervisor may load: each import is paid at every one's start.
CHEAP = {
    "__future__", "_signal", "_socket", "ctypes", "errno", "fcntl", "gc", "itertools", "marshal",
    "os", "select", "stat", "struct", "sys", "time", "zlib",
}  # fmt: skip

#: What it loads only for a job that has values to mask, has a terminal, or hands values over.
FOR_SOME = {
    "supervisor.redaction": {"re", "binascii"},
    "supervisor.spawn": {"termios"},
    "supervisor.result_file": {"json"},
}


def test_supervisor_imports_only_cheap_modules():
    """What a supervisor runs imports only modules that cost next to nothing."""
    trees = modules()
    wrong = []
    for name, tree in trees.items():
        if not name.startswith("supervisor") and name != "embedding.failpoints":
            continue
        for_checkers = {
            node
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for statement in block.body
            for node in ast.walk(statement)
        }
        for node in ast.walk(tree):
            if node in for_checkers:
                continue
            if isinstance(node, ast.ImportFrom):
                found = [node.module or ""]
            elif isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            else:
                continue
            wrong += [
                f"{name} imports {one}"
                for one in found
                if one not in CHEAP
                and one.split(".")[0] != "jobcore"
                and not (one in FOR_SOME.get(name, ()) and node not in tree.body)
            ]

    assert wrong == []
