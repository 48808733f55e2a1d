"""Caller: where the fresh interpreter looks for modules; the rest is in the integration tests."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from jobcore.functions.__main__ import SigtermHandler, merged_path
from jobcore.functions.encoding import this_python
from tests.processes import PATIENCE, Child

OTHER = ["cpython-39", "/opt/other", "/opt/other"]


def test_the_same_python_looks_where_the_submitter_does():
    """The submitter's path comes first, complete and in order; other entries follow."""
    sent = ["/app", "/usr/lib/python3.11", "/venv/lib/python3.11/site-packages", "/src"]
    own = ["/usr/lib/python3.11", "/extra"]

    assert merged_path(sent, this_python(), own) == [*sent, "/extra"]


@pytest.mark.parametrize(
    "entry",
    [
        "/usr/lib/python39.zip", "/usr/lib/python3.9", "/usr/lib/python3.9/lib-dynload",
        "/usr/lib64/python3.9/lib-dynload", "/usr/lib/python3/dist-packages",
        "/venv/lib/python3.9/site-packages", "/home/me/.local/lib/python3.9/site-packages",
        "/somewhere/site-packages",
    ],
)  # fmt: skip
def test_other_python_ignores_the_submitters_installation(entry):
    """The standard library and the packages of one version are nothing to another one."""
    sent = ["/app", entry, "/src/python"]
    own = ["/usr/lib/python3.13"]

    assert merged_path(sent, OTHER, own) == ["/app", "/src/python", *own]


def test_python_is_identified_by_version_and_location():
    """Two virtual environments of one version are two installations."""
    assert this_python() == [sys.implementation.cache_tag, sys.prefix, sys.exec_prefix]


def gets_sigterm_in_a_fork():
    """Return whether a SIGTERM that comes between the hooks of a fork ends this all the same."""
    handler = SigtermHandler()
    handler._hold()  # as `os.fork` does
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        handler._release()  # the signal may come while this still starts its sender
        time.sleep(PATIENCE)
    except SystemExit:
        return True
    return False


def test_a_sigterm_in_the_middle_of_a_fork_ends_the_function():
    """Hooks of a fork cannot raise: it comes again once the fork is over."""
    assert Child(gets_sigterm_in_a_fork).result()
