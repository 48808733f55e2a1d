"""
Checks whether other users could write to a database, its directory or the files beside it.

SQLite replays `-journal` and `-wal` files into the database, and the database determines
which commands run. So a user who can create a file in the directory can run commands as
this user.
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

#: Environment variable: a directory that may be used although other users can write to it.
TRUST_VARIABLE = "JOBCORE_TRUST_DIRECTORY"

#: Suffixes of the files beside the database that SQLite reads, writes and trusts.
SIDE_FILES = ("-journal", "-wal", "-shm")

_MOST_LINKS = 40  # the kernel's limit
_ACCESS_LIST = "system.posix_acl_access"
_LIST_VERSION = struct.Struct("<I")
_LIST_ENTRY = struct.Struct("<HHI")  # tag, permissions, id
_NAMED_USER, _OWNING_GROUP, _NAMED_GROUP, _MASK = 0x02, 0x04, 0x08, 0x10
_WRITE = 0o2  # in the permissions of one entry


def is_part_of(path: str, database: str) -> bool:
    """Tell whether a path leads to a database or to a side file, even one that is yet to come."""
    for own in (database, *(database + end for end in SIDE_FILES)):
        if os.path.realpath(path) == os.path.realpath(own):
            return True
        try:
            if os.path.samefile(path, own):  # by a hard link
                return True
        except OSError:
            continue  # one of them does not exist
    return False


# --- the path -------------------------------------------------------------------


def resolve(path: str) -> str:
    """
    Return the absolute path without links. Each link must belong to this user or root.

    Raises:
        StoreError: A link in the path belongs to another user, who could redirect it.
        OSError: There are too many links, or there is no current directory.
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
    """Return the target of a link; None: `entry` is not a link, or cannot be examined."""
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
    Refuse a directory in which another user can create files.

    Its parent directories are not checked. A user who can rename one of them can put
    another directory in its place, but that directory belongs to that user and is refused.

    Args:
        directory: An absolute path without links.
        trusted: The caller trusts everyone who can write to it.

    Raises:
        StoreError: Another user can create files there. The text names the remedy.
        OSError: The directory cannot be examined.
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
    """Return who can create files in a directory besides this user and root; None: no one."""
    facts = os.lstat(directory)
    if not _is_trusted(facts.st_uid):
        return f"user {facts.st_uid}, who owns it,"
    if facts.st_mode & stat.S_IWOTH:
        return "any user"
    if facts.st_mode & stat.S_IWGRP:
        # With an access control list, the group bits of the mode show the list's mask.
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
    """Tell whether this user is the only member of a group, according to the group's entry."""
    import grp  # noqa: PLC0415 - rarely needed: few directories are group-writable
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
    """Return tag, permissions and id of each entry of the access control list, if there is one."""
    try:
        stored = os.getxattr(path, _ACCESS_LIST)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS):
            return []
        raise
    return list(_LIST_ENTRY.iter_unpack(stored[_LIST_VERSION.size :]))


# --- the files ------------------------------------------------------------------


def has_side_files(database: str) -> bool:
    """Tell whether one of SQLite's side files exists."""
    return any(os.path.lexists(database + end) for end in SIDE_FILES)


def odd_side_file(database: str) -> str | None:
    """Return the first of the database and its side files that is not a regular file, or None."""
    odd = (name for name, facts in _files(database) if not stat.S_ISREG(facts.st_mode))
    return next(odd, None)


def require_private_files(database: str) -> None:
    """
    Refuse a database or side file that belongs to, or can be written by, another user.

    Called before each time SQLite opens the file. It changes nothing and opens nothing.

    Raises:
        StoreError: One of them is not a regular file, or another user can write to it.
        OSError: One of them cannot be examined.
    """
    for name, facts in _files(database):
        if not stat.S_ISREG(facts.st_mode):
            raise StoreError(not_a_file(name, database, is_link=stat.S_ISLNK(facts.st_mode)))
        if not _is_trusted(facts.st_uid):
            # Do not suggest chown first: if root only looks, that would lock its user out.
            raise StoreError(
                f"{name} belongs to another user, who could decide what is run: work as user "
                f"{facts.st_uid}, or make user {os.geteuid()} the owner of the database and of "
                "the files beside it"
            )
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StoreError(f"others can write to {name}, and so decide what is run: chmod 600 it")


def require_single_names(database: str) -> None:
    """
    Refuse a database or side file that has a second name, a hard link.

    Two names lead to two write-ahead logs for one file, which is certain damage. This is
    checked only on opening, because a backup may create hard links while it is in use.

    Raises:
        StoreError: One of them has a second name.
        OSError: One of them cannot be examined.
    """
    for name, facts in _files(database):
        if facts.st_nlink > 1:
            raise StoreError(second_name(name))


def not_a_file(name: str, database: str, *, is_link: bool = False) -> str:
    """Return the error text for a database or side file that is not a regular file."""
    remedy = "name the file of a database" if name == database else "move it away"
    return f"{name} is {'a link' if is_link else 'not a file'}: {remedy}"


def second_name(name: str) -> str:
    """Return the error text for a database or side file with a second name."""
    return (
        f"{name} has a second name (a hard link), and each would get its own write-ahead log, "
        "which damages the database: remove the other name, which find -samefile shows"
    )


def _files(database: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and `lstat` of the database and of each side file that exists."""
    for name in (database, *(database + end for end in SIDE_FILES)):
        try:
            yield name, os.lstat(name)
        except FileNotFoundError:
            pass  # SQLite removes side files with the last connection


def make_private(database: str) -> None:
    """
    Remove the permissions of other users to read the database, which may hold secrets.

    Called only once the file is known to be jobcore's, and was accepted.
    """
    for name, facts in _files(database):
        if not facts.st_mode & 0o077 or facts.st_uid != os.geteuid():
            continue
        try:
            os.chmod(name, facts.st_mode & 0o700)
        except FileNotFoundError:
            continue
        except OSError as error:  # such as a read-only disk; the file can still be used
            outcome = error.strerror
        else:
            outcome = "made private"
        telemetry.event(logging.WARNING, "file readable by others", path=name, outcome=outcome)
