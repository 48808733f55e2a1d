"""A test that hangs fails by its name, and shows where every thread stands."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.processes import PATIENCE, ROOT

HANGS = """
import os, threading, time
import pytest

@pytest.fixture
def stuck():
    yield
    threading.Event().wait()

def test_opens_a_fifo(tmp_path, stuck):
    threading.Thread(target=time.sleep, args=(60,), name="sleeper", daemon=True).start()
    os.mkfifo(tmp_path / "fifo")
    descriptor = os.open(tmp_path / "fifo", os.O_RDWR)
    os.read(descriptor, 1)

def test_after_it():
    pass
"""


def test_hanging_test_and_fixture_fail_by_name_with_all_stacks(tmp_path):
    """The next test runs all the same."""
    (tmp_path / "test_hangs.py").write_text(HANGS)
    options = ["-o", "timeout=1", "-p", "tests.conftest"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", *options, tmp_path],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"},
        check=False,
    )

    assert "test_hangs.py::test_opens_a_fifo - Failed: Timeout" in done.stdout
    assert "ERROR" in done.stdout
    assert "Stack of sleeper" in done.stdout
    assert "1 failed, 1 passed, 1 error" in done.stdout
