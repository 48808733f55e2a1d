"""
Who else could write to a database, to its directory, or to the files beside it.

SQLite replays what it finds in `-journal` and `-wal` into the database, and the
database says which commands run. So a user who can create a file in the directory
can run commands as this user.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
from collections.abc import Iterator

from jobcore.embedding import telemetry
from jobcore.errors import StoreError

#: Names the directory that may be used although other users can write to it.
TRUST_VARIABLE = "JOBCORE_TRUST_DIRECTORY"

#: What SQLite reads or writes beside the database file, and may believe.
SIDE_FILES = ("-journal", "-wal", "-shm")

_MOST_LINKS = 40  # as the kernel
_ACCESS_LIST = "system.posix_acl_access"
_LIST_VERSION = struct.Struct("<I")
_LIST_ENTRY = struct.Struct("<HHI")  # tag, permissions, id
_NAMED_USER, _OWNING_GROUP, _NAMED_GROUP, _MASK = 0x02, 0x04, 0x08, 0x10
_WRITE = 0o2  # in the permissions of one entry


# --- the path -------------------------------------------------------------------


def resolve(path: str) -> str:
    """
    Return the absolute path without links, of which each must be this user's or root's.

    Raises:
        StoreError: A link on the way belongs to another user, who could point it elsewhere.
        OSError: There are too many links, or no current directory.
    """
    found = "/" if path.startswith("/") else os.getcwd()
    names = path.split("/")[::-1]
    links = 0
    while names:
        name = names.pop()
        if name in ("", "."):
            continue
        if name == "..":
            found = os.path.dirname(found)
            continue
        entry = os.path.join(found, name)
        target = _followed(entry)
        if target is None:
            found = entry
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        names.extend(target.split("/")[::-1])
        if target.startswith("/"):
            found = "/"
    return found


def _followed(entry: str) -> str | None:
    """Return where a link leads; None: it is no link, or cannot be looked at."""
    try:
        facts = os.lstat(entry)
        if not stat.S_ISLNK(facts.st_mode):
            return None
        target = os.readlink(entry)
    except OSError:
        return None
    if not _is_trusted(facts.st_uid):
        raise StoreError(
            f"{entry} is a link of user {facts.st_uid}, who could point it elsewhere: "
            f"name the path that is meant, such as {os.path.realpath(entry)}"
        )
    return target


# --- the directory --------------------------------------------------------------


def require_private_directory(directory: str, *, trusted: bool = False) -> None:
    """
    Refuse a directory in which another user can create a file.

    Directories above it are not judged. A user who may rename one of them can put
    another directory in its place, but only one of his own, which is refused.

    Args:
        directory: Absolute, without links.
        trusted: The caller trusts everyone who can write to it.

    Raises:
        StoreError: Another user can, and what to do about it.
        OSError: It cannot be looked at.
    """
    writer = None if trusted or _is_named(directory) else other_writer(directory)
    if writer is not None:
        raise StoreError(
            f"{writer} can create files in {directory}, and so run commands as user "
            f"{os.geteuid()} through a journal beside the database. Use a private directory: "
            "mkdir -m 700 jobs && jobcore --db jobs/jobs.db. To trust everyone who can write "
            f"there, set {TRUST_VARIABLE}={directory}, or use JobManager(trust_directory=True) "
            "or jobcore --trust-directory"
        )


def other_writer(directory: str) -> str | None:
    """Say who, other than this user and root, can create files in a directory; None: no one."""
    facts = os.lstat(directory)
    if not _is_trusted(facts.st_uid):
        return f"user {facts.st_uid}, who owns it,"
    if facts.st_mode & stat.S_IWOTH:
        return "any user"
    if facts.st_mode & stat.S_IWGRP:
        # Where there is an access control list, the mode shows its mask in place of the group's.
        entries = _access_list(directory)
        mask = next((allowed for tag, allowed, _ in entries if tag == _MASK), _WRITE)
        for tag, allowed, number in entries or [(_OWNING_GROUP, _WRITE, 0)]:
            if not allowed & mask & _WRITE:
                continue
            if tag == _NAMED_USER and not _is_trusted(number):
                return f"user {number}"
            group = facts.st_gid if tag == _OWNING_GROUP else number
            if tag in (_OWNING_GROUP, _NAMED_GROUP) and not _is_private_group(group):
                return f"group {group}"
    return None


def _is_named(directory: str) -> bool:
    named = os.environ.get(TRUST_VARIABLE)
    return bool(named) and os.path.realpath(named or "") == directory


def _is_trusted(user: int) -> bool:
    return user in (os.geteuid(), 0)


def _is_private_group(number: int) -> bool:
    """Tell whether a group has this user as its only member, as far as its own entry says."""
    import grp  # noqa: PLC0415 - few directories can be written to by a group
    import pwd  # noqa: PLC0415

    try:
        user = pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(number)
    except KeyError:
        return False  # a user or a group without a name, as in a container
    return (
        number == user.pw_gid
        and group.gr_name == user.pw_name
        and set(group.gr_mem) <= {user.pw_name}
    )


def _access_list(path: str) -> list[tuple[int, int, int]]:
    """Return tag, permissions and id of each entry; empty where there is no list."""
    try:
        stored = os.getxattr(path, _ACCESS_LIST)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS):
            return []
        raise
    return list(_LIST_ENTRY.iter_unpack(stored[_LIST_VERSION.size :]))


# --- the files ------------------------------------------------------------------


def has_side_files(database: str) -> bool:
    """Tell whether something is beside the database that SQLite would look at."""
    return any(os.path.lexists(database + end) for end in SIDE_FILES)


def odd_side_file(database: str) -> str | None:
    """Return the path of what is beside the database and no plain file; None: there is none."""
    odd = (name for name, facts in _files(database) if not stat.S_ISREG(facts.st_mode))
    return next(odd, None)


def require_private_files(database: str) -> None:
    """
    Refuse a database, or a file beside it that SQLite would believe, which is not this user's.

    Called each time before SQLite opens the file. It changes nothing and opens nothing.

    Raises:
        StoreError: One is no plain file, or another user can write to it.
        OSError: One cannot be looked at.
    """
    for name, facts in _files(database):
        if not stat.S_ISREG(facts.st_mode):
            raise StoreError(
                f"{name} is {'a link' if stat.S_ISLNK(facts.st_mode) else 'not a file'}"
            )
        if not _is_trusted(facts.st_uid):
            # Not "chown it" first: root, who only looks, would lock its users out of it.
            raise StoreError(
                f"{name} belongs to another user, who could say what is run: be user "
                f"{facts.st_uid}, or give user {os.geteuid()} the database with all that is "
                "beside it"
            )
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StoreError(f"others may write to {name}, and so say what is run: chmod it to 600")


def require_single_names(database: str) -> None:
    """
    Refuse a database, or a file beside it, that has a second name.

    Two names lead to two write-ahead logs for one file: certain damage. Only asked
    when the database is opened: a backup by hard links may come while it is in use.

    Raises:
        StoreError: One has.
        OSError: One cannot be looked at.
    """
    for name, facts in _files(database):
        if facts.st_nlink > 1:
            raise StoreError(f"{name} has a second name (a hard link)")


def _files(database: str) -> Iterator[tuple[str, os.stat_result]]:
    """Return the database and what is beside it, with what the system says of each."""
    for name in (database, *(database + end for end in SIDE_FILES)):
        try:
            yield name, os.lstat(name)
        except FileNotFoundError:
            pass  # its last user may have just removed it


def make_private(database: str) -> None:
    """
    Take from others the right to read the database, which may hold secrets.

    Called once the file is known to be jobcore's, and accepted.
    """
    for name, facts in _files(database):
        if not facts.st_mode & 0o077 or facts.st_uid != os.geteuid():
            continue
        try:
            os.chmod(name, facts.st_mode & 0o700)
        except FileNotFoundError:
            continue
        except OSError as error:  # on a read-only disk: it can be used as it is
            told = error.strerror
        else:
            told = "made private"
        telemetry.event(logging.WARNING, "others could read it", path=name, outcome=told)
