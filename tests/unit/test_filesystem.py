"""Filesystem: which places are refused, and files that are private from their first moment."""

from __future__ import annotations

import os

import pytest

from jobcore import JobManager, StoreError, UnsupportedFileSystem
from jobcore.storage import filesystem
from jobcore.storage.database import Database
from tests.cases import each
from tests.processes import at_once, in_child
from tests.transactions import transaction

MOUNTS = r"""
21 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:20 / /proc rw - proc proc rw
30 21 0:30 / /data rw,relatime shared:2 master:3 - nfs4 server:/export rw
31 21 0:31 / /database rw - xfs /dev/vdb rw
32 21 0:32 / /with\040space rw - cifs //server/share rw
33 21 0:33 / /mnt/é rw - nfs server:/x rw
34 21 0:34 / /mnt/no break rw - smb3 //server/y rw
35 30 0:35 / /data/local rw - ext4 /dev/vdc rw
36 21 0:36 / /twice rw - nfs server:/z rw
37 36 0:37 / /twice rw - tmpfs tmpfs rw
38 21 0:38 / /over rw - ext4 /dev/vdd rw
39 38 0:39 / /over rw - fuse.sshfs me@server: rw
40 21 0:40 / /back\134slash rw - 9p host rw
""".strip().replace("no break", "no\xa0break")  # a space for Python, none for the kernel


@each(
    ("path", "kind"),
    [
        ("/home/x/jobs.db", "ext4"),
        ("/jobs.db", "ext4"),
        ("/data/jobs.db", "nfs4"),
        ("/data/a/b/jobs.db", "nfs4"),
        ("/data", "nfs4"),
        ("/dataset/jobs.db", "ext4"),
        ("/database/jobs.db", "xfs"),
        ("/data/local/jobs.db", "ext4"),
        ("/data/localx/jobs.db", "nfs4"),
        ("/with space/jobs.db", "cifs"),
        ("/mnt/é/jobs.db", "nfs"),
        ("/mnt/no\xa0break/jobs.db", "smb3"),
        ("/twice/jobs.db", "tmpfs"),
        ("/over/jobs.db", "fuse.sshfs"),
        ("/back\\slash/jobs.db", "9p"),
    ],
)
def test_file_system_is_that_of_the_innermost_mount(path, kind):
    """A path is on the file system mounted last at the longest of its parents."""
    assert filesystem.file_system_of(path, MOUNTS) == kind


@each(
    ("path", "mounted"),
    [
        ("/", True),
        ("/data", True),
        ("/data/local", True),
        ("/twice", True),
        ("/with space", True),
        ("/mnt/é", True),
        ("/mnt/no\xa0break", True),
        ("/back\\slash", True),
        ("/with\\040space", False),
        ("/back\\134slash", False),
        ("/data/", False),
        ("/data/loca", False),
        ("/data/localx", False),
        ("/data/local/jobs.db", False),
        ("/mnt", False),
        ("/mnt/no", False),
        ("ext4", False),
    ],
)
def test_a_mount_point_is_known_by_its_whole_name(path, mounted):
    """Something is mounted at a path itself only where the table has all of it, unescaped."""
    assert filesystem.is_mount_point(path, MOUNTS) is mounted


def test_a_file_that_is_mounted_by_itself_is_refused(database, monkeypatch, tmp_path):
    """A file that is a mount point is refused; files below a mount are not."""
    table = tmp_path / "mountinfo"
    folder = tmp_path / "a b"
    folder.mkdir()
    escaped = os.fsencode(folder).replace(b" ", rb"\040")
    table.write_bytes(
        b"21 1 252:0 / / rw - ext4 /dev/vda rw\n"
        b"30 21 252:0 /x %b rw - ext4 /dev/vda rw\n"
        b"31 30 252:0 /y %b/jobs.db rw - ext4 /dev/vda rw\n" % (escaped, escaped)
    )
    monkeypatch.setattr(filesystem, "MOUNTINFO", str(table))

    with pytest.raises(UnsupportedFileSystem, match="mounted by itself: mount its directory"):
        Database(folder / "jobs.db")
    assert os.listdir(folder) == []
    Database(folder / "other.db").close()
    Database(database).close()


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs"])
def test_network_file_system_is_refused(database, monkeypatch, kind):
    """On a shared file system nothing is made, and the message gives the remedy."""
    monkeypatch.setattr(filesystem, "file_system_of", lambda *_: kind)

    with pytest.raises(UnsupportedFileSystem, match=f"{kind}.*local disk"):
        Database(database)
    assert os.listdir(os.path.dirname(database)) == []


def test_mount_table_of_this_machine_is_read(tmp_path):
    """The real mount table, whatever it holds, lets a local path pass."""
    filesystem.require_local(str(tmp_path))


def test_mount_with_a_name_that_is_not_utf_8_is_ignored(tmp_path, monkeypatch):
    """Another mount whose name is no UTF-8 does not keep a local database from opening."""
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"21 1 252:0 / / rw - ext4 /dev/vda rw\n30 21 0:30 / /mnt/\xff rw - nfs server:/x rw\n"
    )
    monkeypatch.setattr(filesystem, "MOUNTINFO", str(table))

    filesystem.require_local("/home/jobs.db")
    with pytest.raises(UnsupportedFileSystem):
        filesystem.require_local("/mnt/\udcff/jobs.db")


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_every_file_is_private(database, umask):
    """Database, its companions and the root are this user's alone, under any umask."""
    before = os.umask(umask)
    try:
        opened = Database(database)
        with transaction(opened) as connection:
            connection.exec_driver_sql("CREATE TABLE x (y)")
        opened.checkpoint()
        modes = {
            os.path.relpath(path, os.path.dirname(database)): oct(os.stat(path).st_mode & 0o7777)
            for path in _everything(os.path.dirname(database))
        }
        opened.close()
    finally:
        os.umask(before)
    expected = {
        "jobs.db": "0o600",
        "jobs.db-wal": "0o600",
        "jobs.db-shm": "0o600",
        "jobs.db.jobs": "0o700",
        "jobs.db.jobs/store": "0o600",
        "jobs.db.jobs/checkpoint": "0o600",
    }

    assert modes == expected


def _everything(directory):
    for entry in os.scandir(directory):
        yield entry.path
        if entry.is_dir():
            yield from _everything(entry.path)


def test_hard_link_is_refused(database):
    """A file with a second name is refused: each name would have a write-ahead log of its own."""
    Database(database).close()
    os.link(database, database + ".other")

    for name in (database, database + ".other"):
        with pytest.raises(StoreError, match=r"hard link.* remove the other name"):
            Database(name)
    os.unlink(database + ".other")
    Database(database).close()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_database_that_is_not_a_file_is_refused(database, make):
    """A directory or a FIFO under the name is refused, and not waited for."""
    make(database)

    with pytest.raises(StoreError, match="not a file: name the file of a database"):
        Database(database)


def test_missing_parent_directory_is_reported(tmp_path):
    """A database in a directory that is not there is refused with the reason."""
    with pytest.raises(StoreError, match="No such file or directory"):
        Database(tmp_path / "missing" / "jobs.db")


def test_relative_path_without_a_current_directory_raises(tmp_path):
    """A database that has no place, for the current directory was removed, is a StoreError."""

    def try_it():
        gone = tmp_path / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()
        for make in (lambda: Database("jobs.db"), lambda: JobManager("jobs.db", slots=0)):
            with pytest.raises(StoreError, match=r"jobs\.db: No such file or directory"):
                make()

    in_child(try_it)


def test_symbolic_link_leads_to_one_database(tmp_path):
    """Through a link the same database is opened, with the same root."""
    (tmp_path / "real").mkdir()
    os.symlink("real/jobs.db", tmp_path / "link.db")
    first = Database(tmp_path / "link.db")
    second = Database(tmp_path / "real" / "jobs.db")

    assert first.path == second.path == str(tmp_path / "real" / "jobs.db")
    first.close()
    second.close()


def test_store_id_is_made_once(tmp_path):
    """Eight processes that make the id at once all get the same, and leave nothing else."""
    os.mkdir(tmp_path / "jobs.db.jobs", 0o700)
    root = filesystem.open_root(str(tmp_path / "jobs.db"), create=False)
    try:
        ids = at_once(filesystem.make_store_id, [(root, str(tmp_path / "jobs.db"))] * 8)

        assert len(set(ids)) == 1
        assert filesystem.read_store_id(root, str(tmp_path / "jobs.db")) == ids[0]
        assert os.listdir(root) == ["store"]
    finally:
        os.close(root)


def test_store_id_survives_a_power_failure(tmp_path, monkeypatch):
    """The id, its name and the name of the root are on the disk, in this order."""
    os.mkdir(tmp_path / "jobs.db.jobs", 0o700)
    root = filesystem.open_root(str(tmp_path / "jobs.db"), create=False)
    synced, fsync = [], os.fsync

    def noted(descriptor):
        synced.append((os.fstat(descriptor).st_ino, "store" in os.listdir(root)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    try:
        filesystem.make_store_id(root, str(tmp_path / "jobs.db"))
        store = os.stat("store", dir_fd=root).st_ino
        assert synced == [
            (store, False),  # or the name could lead to an empty file
            (os.fstat(root).st_ino, True),
            (os.stat(tmp_path).st_ino, True),
        ]
    finally:
        os.close(root)


def test_store_id_is_made_though_a_sweep_is_about(tmp_path, monkeypatch):
    """A sweep that removes an unused id does not disturb its maker."""
    os.mkdir(tmp_path / "jobs.db.jobs", 0o700)
    root = filesystem.open_root(str(tmp_path / "jobs.db"), create=False)
    link = os.link

    def sweep_first(*names, **options):
        monkeypatch.undo()
        made = filesystem.make_store_id(root, str(tmp_path / "jobs.db"))
        filesystem.remove_unused_store_ids(root, os.listdir(root))
        with pytest.raises(FileNotFoundError):
            link(*names, **options)
        raise FileNotFoundError(made)

    monkeypatch.setattr(os, "link", sweep_first)
    try:
        assert filesystem.make_store_id(
            root, str(tmp_path / "jobs.db")
        ) == filesystem.read_store_id(root, str(tmp_path / "jobs.db"))
        assert os.listdir(root) == ["store"]
    finally:
        os.close(root)
