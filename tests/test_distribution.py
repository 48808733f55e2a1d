"""The distribution is `libjobcore`: on PyPI the name `jobcore` is another project's."""

from __future__ import annotations

import ast
import re
import sys

import pytest

from tests.processes import ROOT

PYPROJECT = (ROOT / "pyproject.toml").read_text()
#: Every way to name a distribution `jobcore` that someone might run, declare or look up.
FOREIGN = [
    re.compile(pattern)
    for pattern in (
        r"(?<![\w-])jobcore\[[a-z]",  # with extras
        r"(?<![\w-])jobcore\s*(?:==|>=|~=|@ )",  # a requirement
        r"\b(?:pipx?|uv|poetry|conda)\b[^\n&|;]* (?:install|add|run)\b[^\n&|;]* ['\"]?jobcore\b",
        r"pypi\.org/project/jobcore\b",
        r"metadata\.\w+\(['\"]jobcore\b",
        r"\b(?:version|distribution|requires)\(['\"]jobcore\b",
    )
]


def sources():
    """Return every text file of the project."""
    named = [ROOT / name for name in ("README.md", "pyproject.toml", ".ci/run")]
    below = [
        path
        for folder in ("jobcore", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".toml", ".txt", ".sh"}
    ]
    return [
        path for path in [*named, *below] if path.exists() and path.name != "test_distribution.py"
    ]


def foreign(text):
    return [found[0] for pattern in FOREIGN for found in pattern.finditer(text)]


def test_no_file_names_the_distribution_of_another_project():
    """Whoever pastes a line of ours never installs, requires or looks up the other `jobcore`."""
    named = {str(path.relative_to(ROOT)): foreign(path.read_text()) for path in sources()}

    assert {path: found for path, found in named.items() if found} == {}


@pytest.mark.parametrize(
    "text",
    [
        "pip install jobcore",
        "pip install -U 'jobcore[cli]'",
        "uv tool run jobcore",
        '"jobcore>=0.1",',
        "pipx install --quiet jobcore",
        'importlib.metadata.version("jobcore")',
        "https://pypi.org/project/jobcore/",
        'extra = ["jobcore[test]"]',
    ],
)
def test_the_other_project_is_recognised(text):
    """The check above sees each form."""
    assert foreign(text)


@pytest.mark.parametrize(
    "text",
    [
        "pip install 'libjobcore[cli]'",
        "pip install typer rich",
        ".venv/bin/pip install --quiet '.[cli]' && .venv/bin/jobcore run -- true",
        "from jobcore import JobManager",
    ],
)
def test_own_names_are_accepted(text):
    """The check above does not mind the import, the command and the right name."""
    assert foreign(text) == []


def test_the_distribution_has_its_own_name():
    """The project is `libjobcore`; what it is imported and called by stays `jobcore`."""
    assert re.findall(r'^name = "(.*?)"', PYPROJECT, re.MULTILINE) == ["libjobcore"]
    assert 'jobcore = "jobcore.cli:main"' in PYPROJECT
    assert "imported as `jobcore`" in (ROOT / "README.md").read_text()


def test_every_library_that_is_imported_is_declared():
    """What jobcore imports does not come only because another library happens to bring it."""
    imported = {
        module.split(".")[0]
        for path in (ROOT / "jobcore").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for module in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    libraries = imported - {*sys.stdlib_module_names, "jobcore"}
    optional = {
        "cronsim", "rich", "ruamel", "typer", "pytest", "trio", "typing_extensions", "uwsgi",
    }  # fmt: skip
    (declared,) = re.findall(r"^dependencies = \[\n(.*?)^\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    names = {
        name.lower().replace("-", "_")
        for name in re.findall(r'^  "([\w-]+)', declared, re.MULTILINE)
    }

    assert {"pydantic", "sqlalchemy", "sqlmodel", "transitions"} <= libraries
    assert libraries - optional - names == set()
