"""A database file that is mounted by itself: by that name nobody may use it."""

from __future__ import annotations

import os

import pytest

from jobcore import JobManager, UnsupportedFileSystem
from jobcore.operations import doctor
from tests.mounts import in_own_mounts, mount_file, unmount


def _wrong(findings):
    return {one.check: one.detail for one in findings if one.verdict == "wrong"}


def _use_both_names(folder):
    """Use the file by the name that it has, and by the one at which it alone is mounted."""
    first, second = f"{folder}/first/jobs.db", f"{folder}/sec ond/jobs.db"
    for path in (first, second):
        os.mkdir(os.path.dirname(path))
    os.close(os.open(second, os.O_CREAT, 0o600))
    os.symlink(second, f"{folder}/link.db")
    with JobManager(first, slots=0) as jobs:
        job = jobs.create_job("TASK")
        mount_file(first, second)
        for name in (second, f"{folder}/link.db"):
            with pytest.raises(UnsupportedFileSystem, match=r"mounted by itself.*directory"):
                JobManager(name, slots=0)
            assert list(_wrong(doctor.examine(name))) == ["file system"]
            assert "mounted by itself" in _wrong(doctor.examine(name))["file system"]
        # What somebody has open is in order; and so it is by the name that it always had.
        assert (jobs.get_job(job.id), _wrong(jobs.check())) == (job, {})
        with JobManager(first, slots=0) as other:
            other.start_job(job.id)
    beside = os.listdir(os.path.dirname(second))
    unmount(second)
    with JobManager(second, slots=0) as other:
        assert other.list_jobs() == []
    return beside


def test_a_file_that_is_mounted_by_itself_is_refused(tmp_path):
    """A second path that is not a hard link is refused, and the doctor gives the reason."""
    assert in_own_mounts(_use_both_names, str(tmp_path)) == ["jobs.db"]


def _mount_over_an_open_one(folder):
    """Open a file, and mount another one over it."""
    database = f"{folder}/jobs.db"
    with JobManager(f"{folder}/other.db", slots=0):
        pass
    with JobManager(database, slots=0) as jobs:
        assert _wrong(jobs.check()) == {}
        mount_file(f"{folder}/other.db", database)
        return _wrong(jobs.check())


def test_check_reports_a_mount_over_an_open_file(tmp_path):
    """The check of an open database reports that its path now leads to another file."""
    assert (
        "mounted by itself" in in_own_mounts(_mount_over_an_open_one, str(tmp_path))["file system"]
    )
