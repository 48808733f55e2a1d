"""Ownership: a lock that says whether the process that owns jobs lives."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
from pathlib import Path

import pytest

from jobcore import JobManager, StoreError
from jobcore.engine.ownership import PREFIX
from jobcore.storage import filesystem
from jobcore.testing.parts import parts
from tests.processes import Child, descriptors, hear, in_child, left_open, until


@pytest.fixture
def ownership(database):
    """Return what this process and others are owners by, on a file of its own."""
    with JobManager(database, slots=0) as jobs:
        yield parts(jobs).ownership


def files(ownership):
    """Return the names of the lock files there are."""
    path = Path(ownership.directories.path(""))
    return sorted(name.name for name in path.glob(PREFIX + "*"))


def claim_and_tell(ownership, answer):
    """Become an owner in this process, say so, and stay."""
    os.write(answer, ownership.claim().encode())
    signal.pause()


def owner_in_child(ownership):
    """Return a child that is an owner, and its name."""
    ours, theirs = os.pipe()
    child = Child(claim_and_tell, ownership, theirs)
    name = hear(ours) + os.read(ours, 200)
    os.close(ours)
    os.close(theirs)
    return child, name.decode()


def test_process_has_one_name_until_it_is_released(ownership):
    """A process is one owner, whatever number of jobs and managers it has."""
    before = descriptors()
    name = ownership.claim()

    assert (ownership.claim(), ownership.current, ownership.lives(name)) == (name, name, True)
    assert files(ownership) == [PREFIX + name]
    ownership.release(is_used=True)
    assert ownership.current == name
    ownership.release(is_used=False)
    assert (ownership.current, files(ownership)) == (None, [])
    assert not [to for to in left_open(before).values() if PREFIX in to]


def test_owner_is_dead_once_its_process_was_killed(ownership):
    """A SIGKILL frees the lock; before it the owner lives for every other process."""
    child, name = owner_in_child(ownership)
    assert ownership.lives(name)
    child.kill()

    assert not ownership.lives(name)
    ownership.remove_unused({name})
    assert files(ownership) == [PREFIX + name]
    ownership.remove_unused(())
    assert files(ownership) == []
    assert not ownership.lives(name)


def test_file_of_a_living_owner_stays(ownership):
    """Only the lock of a dead owner is removed, whoever looks."""
    own = ownership.claim()
    child, name = owner_in_child(ownership)
    try:
        ownership.remove_unused(())
        in_child(ownership.remove_unused, ())
        assert files(ownership) == sorted([PREFIX + own, PREFIX + name])
    finally:
        child.kill()


def test_owner_lives_though_a_cleaner_removed_its_file(ownership):
    """Without the file the process itself decides, and its next claim makes the file again."""
    child, name = owner_in_child(ownership)
    own = ownership.claim()
    root = Path(ownership.directories.path(""))
    try:
        for file in files(ownership):
            (root / file).unlink()
        assert ownership.lives(name)
        assert in_child(ownership.lives, own)
        assert ownership.claim() == own
        assert files(ownership) == [PREFIX + own]
    finally:
        child.kill()
    assert not ownership.lives(name)


def _copy(path):
    """Replace a file by a copy of it, as rsync and editors do."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.rename(path)


def _fifo(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("replace", [_copy, _fifo])
def test_owner_lives_though_its_file_was_replaced(ownership, replace):
    """A file that a tool puts in its place is not locked, so the process decides."""
    child, name = owner_in_child(ownership)
    try:
        replace(Path(ownership.directories.path(PREFIX + name)))
        assert ownership.lives(name)
    finally:
        child.kill()
    assert not ownership.lives(name)


def test_owner_lives_though_a_full_disk_left_its_file_empty(ownership, monkeypatch):
    """A process can be an owner even if nothing can be written."""

    def refuse(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        child, name = owner_in_child(ownership)
    try:
        assert Path(ownership.directories.path(PREFIX + name)).stat().st_size == 0
        assert ownership.lives(name)
    finally:
        child.kill()
    assert not ownership.lives(name)


def test_forked_child_is_not_the_owner(ownership):
    """A child has no part in its parent's lock, and is an owner of its own."""
    name = ownership.claim()

    def child():
        return ownership.current, ownership.claim(), ownership.lives(name)

    current, own, parent_lives = in_child(child)
    assert (current, parent_lives) == (None, True)
    assert own != name
    assert not ownership.lives(own)


def test_lock_is_taken_again_after_its_descriptor_was_closed(ownership):
    """If a host closed its descriptor, a file that got the number is not closed with the lock."""
    name = ownership.claim()
    (number,) = [one for one, to in descriptors().items() if to.endswith(PREFIX + name)]
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, number)
    assert ownership.claim() == name
    assert descriptors()[number] == in_child(descriptors)[number] == os.devnull
    ownership.release(is_used=False)
    assert descriptors()[number] == os.devnull
    os.close(number)
    os.close(null)


def fork_in_c_and_tell(ownership, answer):
    """Become an owner whose child, forked without Python's hooks, keeps its descriptors."""
    name = ownership.claim()
    libc = ctypes.PyDLL(None)
    if libc.fork() == 0:
        signal.pause()
        os._exit(0)
    claim_and_tell(ownership, answer)
    return name


def test_child_that_was_forked_by_c_code_does_not_keep_its_parent_alive(ownership):
    """The lock is still held by a copy of the descriptor; the owner's process is gone."""
    ours, theirs = os.pipe()
    before = set(os.listdir("/proc"))
    child = Child(fork_in_c_and_tell, ownership, theirs)
    name = (hear(ours) + os.read(ours, 200)).decode()
    grandchildren = [
        int(pid)
        for pid in set(os.listdir("/proc")) - before
        if pid.isdigit() and _parent_of(pid) == child.pid
    ]
    try:
        assert len(grandchildren) == 1
        assert ownership.lives(name)
        child.kill()
        assert not ownership.lives(name)
    finally:
        for pid in grandchildren:
            os.kill(pid, signal.SIGKILL)
        os.close(ours)
        os.close(theirs)


def _parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _with(name, **changes):
    """Return an owner's name with other facts."""
    facts = dict(zip(("boot", "namespace", "pid", "started", "device", "root", "rest"),
                     name.split("."), strict=True))  # fmt: skip
    return ".".join({**facts, **changes}.values())


def _remove_file(ownership, name):
    Path(ownership.directories.path(PREFIX + name)).unlink(missing_ok=True)


def _copy_file(ownership, name):
    """Put an unlocked file in the place of an owner's, as tools do that copy and rename."""
    Path(ownership.directories.path(PREFIX + name)).write_bytes(b"")


@pytest.mark.parametrize("lose", [_remove_file, _copy_file])
@pytest.mark.parametrize(
    "facts", [{"namespace": "1"}, {"started": "0"}, {"boot": "0" * 32}], ids=str
)
def test_owner_that_cannot_be_seen_is_unknown_without_its_file(ownership, facts, lose):
    """An owner in another pid namespace, or with an incomplete name, is not considered dead."""
    name = _with(ownership.claim(), **facts)
    lose(ownership, name)

    assert ownership.lives(name) is None


def test_owner_that_cannot_be_seen_is_unknown_to_a_process_without_a_boot_id(
    ownership, monkeypatch
):
    """No /proc/sys: the boot of this process cannot be compared with the owner's."""
    name = _with(ownership.claim(), rest="1234abcd")
    monkeypatch.setattr(filesystem, "boot_id", lambda: None)

    assert ownership.lives(name) is None


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EACCES, errno.ENOENT, errno.EIO])
def test_owner_whose_proc_entry_cannot_be_read_is_not_dead(ownership, monkeypatch, error):
    """`hidepid` hides processes of other users; a lack of descriptors decides nothing."""
    child, name = owner_in_child(ownership)
    read = Path.read_bytes

    def fail(path):
        if str(path) == f"/proc/{child.pid}/stat":
            raise OSError(error, os.strerror(error))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    try:
        if error == errno.EMFILE:
            with pytest.raises(StoreError, match="Too many open files"):
                ownership.lives(name)
        else:
            assert ownership.lives(name) is True  # by its lock
            _remove_file(ownership, name)
            assert ownership.lives(name) is None
    finally:
        child.kill()
    assert ownership.lives(name) is False


@pytest.mark.parametrize("pid", ["-1", "0", str(2**40)])
def test_name_with_an_impossible_pid_has_no_process(ownership, pid):
    """A damaged name sends nothing to a process group."""
    assert ownership.lives(_with(ownership.claim(), pid=pid)) is False


@pytest.mark.parametrize("name", ["", "x", "a.b.c.d.e", "../store", "/x/../.1.1.1.1.1.store"])
def test_damaged_owner_name_has_no_process(ownership, name):
    """An owner that names no process has no lock either."""
    assert not ownership.lives(name)


def test_new_process_with_the_pid_of_an_owner_is_not_it(ownership):
    """The name holds when the process started, which another one with its pid did not."""
    child, name = owner_in_child(ownership)
    try:
        boot, namespace, pid, started, device, root, rest = name.split(".")
        other = ".".join([boot, namespace, pid, str(int(started) + 1), device, root, rest])
        assert not ownership.lives(other)
        until(lambda: ownership.lives(name))
    finally:
        child.kill()
