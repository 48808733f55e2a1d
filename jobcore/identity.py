"""
Identity: which directory a run was started in.

A claim stores it in the job's row. A copy or a backup of the files has other
inodes, so a job of another directory is never taken for one of this directory,
and its processes are left alone.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class DirectoryId(NamedTuple):
    """
    A job directory and the directory that holds it, by inode.

    Inodes stay the same after a reboot. Device numbers may not.
    """

    device: int
    root: int
    directory: int

    @classmethod
    def of(cls, root: int, directory: int) -> DirectoryId:
        """Return that of two open descriptors."""
        facts = os.fstat(directory)
        return cls(facts.st_dev, os.fstat(root).st_ino, facts.st_ino)

    @classmethod
    def parse(cls, text: str | None) -> DirectoryId | None:
        """Return what `str` made a text of; None where the row has none, or not such a text."""
        try:
            return cls(*map(int, (text or "").split(":")))
        except (TypeError, ValueError):
            return None

    def __str__(self) -> str:
        """Return it as the row stores it."""
        return f"{self.device}:{self.root}:{self.directory}"
