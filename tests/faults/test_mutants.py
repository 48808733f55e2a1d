"""The checkers are checked: each slip that is sown into jobcore is noticed by a test."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from uuid import uuid4

import pytest

from tests.faults.mutants import MUTANTS
from tests.processes import ROOT, carrying, until

#: Seconds for the tests of one mutant; they give up by themselves long before.
LONGEST = 300


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_sown(mutant):
    """The text that a mutant changes is in the code, once, and its tests are there."""
    text = (ROOT / "jobcore" / mutant.file).read_text()

    assert text.count(mutant.old) == 1
    assert mutant.old != mutant.new
    assert [name for name in mutant.tests if not (ROOT / name).exists()] == []


def test_there_are_enough_mutants():
    """The promises are many, and so are the slips."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


@pytest.mark.faults
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant, tmp_path, record_property):
    """With the mutant in place, at least one of its tests fails; the output names it."""
    # With what is compiled, or each mutant compiles a hundred files that are the same; but
    # for what somebody is just writing, which goes by another name until it is there.
    ignored = shutil.ignore_patterns("*.pyc.*")
    for folder in ("jobcore", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    path = tmp_path / "jobcore" / mutant.file
    path.write_text(path.read_text().replace(mutant.old, mutant.new))
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()
    mark = uuid4().hex
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, "--basetemp", str(tmp_path / "own"), *mutant.tests],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(tmp_path),
                "JOBCORE_TEST_MUTANT": mark,
                "JOBCORE_TEST_PATIENCE": "15",  # seconds for what never comes
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
    finally:
        end_all(mark)
    caught = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)

    assert done.returncode == 1, f"nobody noticed: {done.stdout[-2000:]}"
    assert caught, done.stdout[-2000:]
    record_property("mutant", mutant.name)
    record_property("caught_by", caught[1])


def end_all(mark):
    """End what a mutant left behind: it may be just that which it does wrong."""
    for pid in carrying(f"JOBCORE_TEST_MUTANT={mark}"):
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if pid in carrying(mark):  # the pid may be another's since: the handle cannot be
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)
    until(lambda: not carrying(mark), "the end of all that a mutant began")
