"""The job directory: locks, records and spool files, as two processes see them."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobcore.supervisor import NewerProtocol, job_directory


@pytest.fixture
def root(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def directory(root):
    descriptor = job_directory.open_directory("job", parent=root, create=True)
    yield descriptor
    os.close(descriptor)


# --- locks ---


def test_preparer_and_supervisor_hold_different_bytes(directory):
    """Both bytes can be held at once by different descriptions, and all of it by neither."""
    host = job_directory.open_lock(directory, create=True)
    supervisor = job_directory.open_lock(directory)
    prober = job_directory.open_lock(directory)

    assert not job_directory.is_locked(prober)
    assert job_directory.try_lock(host, job_directory.PREPARING)
    assert not job_directory.try_lock(prober, job_directory.PREPARING)
    assert job_directory.try_lock(supervisor, job_directory.RUNNING)
    job_directory.unlock(host, job_directory.PREPARING)
    assert job_directory.is_locked(prober)
    assert not job_directory.try_lock(prober, job_directory.WHOLE)
    job_directory.unlock(supervisor, job_directory.RUNNING)
    assert job_directory.try_lock(prober, job_directory.WHOLE)
    for descriptor in (host, supervisor, prober):
        os.close(descriptor)


def test_lock_goes_with_the_last_copy(directory):
    """A lock is held until the last copy of its descriptor is closed."""
    holder = job_directory.open_lock(directory, create=True)
    copy = os.dup(holder)
    prober = job_directory.open_lock(directory)
    assert job_directory.try_lock(holder, job_directory.PREPARING)

    os.close(holder)
    assert job_directory.is_locked(prober)
    os.close(copy)
    assert not job_directory.is_locked(prober)
    os.close(prober)


# --- directories ---


def test_directory_is_private(root, tmp_path):
    """A directory that others may enter, a link and a file are refused."""
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("open")
    (tmp_path / "file").touch()

    with pytest.raises(PermissionError):
        job_directory.open_directory("open", parent=root)
    for name in ("link", "file"):
        with pytest.raises(NotADirectoryError):
            job_directory.open_directory(name, parent=root)
    with pytest.raises(FileNotFoundError):
        job_directory.open_directory("missing", parent=root)


def test_create_twice_is_the_same(root, directory):
    """Making a directory that is there opens it."""
    again = job_directory.open_directory("job", parent=root, create=True)

    assert os.path.sameopenfile(again, directory)
    os.close(again)


def test_is_current(root, directory):
    """A directory is current until it is removed, or another one has its name."""
    lock = job_directory.open_lock(directory, create=True)
    assert job_directory.is_current("job", directory, lock, parent=root)

    job_directory.remove("job", directory, parent=root)
    assert not job_directory.is_current("job", directory, lock, parent=root)
    other = job_directory.open_directory("job", parent=root, create=True)
    other_lock = job_directory.open_lock(other, create=True)
    assert not job_directory.is_current("job", directory, lock, parent=root)
    for descriptor in (lock, other, other_lock):
        os.close(descriptor)


def test_remove_leaves_nothing(root, directory, tmp_path):
    """Removing takes every file, and the directory."""
    job_directory.make_control(directory)
    job_directory.write_record(directory, job_directory.STOP, {"who": "me"})

    job_directory.remove("job", directory, parent=root)

    assert list(tmp_path.iterdir()) == []


# --- the FIFO ---


def test_control_byte_arrives_and_never_blocks(directory):
    """A byte arrives; one without FIFO, and one into a full FIFO, do no harm."""
    job_directory.send_control(directory)
    job_directory.make_control(directory)
    job_directory.make_control(directory)
    control = job_directory.open_control(directory)

    job_directory.send_control(directory, job_directory.KILL_NOW)
    assert os.read(control, 10) == job_directory.KILL_NOW
    os.write(control, b"!" * 65536)
    with pytest.raises(BlockingIOError):
        os.write(control, b"!")
    job_directory.send_control(directory)
    os.close(control)


# --- records ---


def test_record_round_trip(directory):
    """Numbers, None and any text come back, even hostile text."""
    record = {
        "number": -5,
        "none": None,
        "empty": "",
        "text": "a=b\ncrc=00000000\n'\"\\ \u20ac \U0001f600 \udc80 \x85",
    }

    job_directory.write_record(directory, "record", record, sync=True)

    assert job_directory.read_record(directory, "record") == record
    assert os.listdir(directory) == ["record"]


def test_torn_record_is_ignored(directory):
    """No prefix of a record, and no flipped bit, is taken for a record."""
    data = job_directory.encode_record({"grace_ms": 5, "who": "me"})

    assert all(job_directory.decode_record(data[:n]) is None for n in range(len(data)))
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert job_directory.decode_record(bytes(damaged)) is None
    assert job_directory.read_record(directory, "missing") is None


def test_newer_record(monkeypatch):
    """A record of a newer jobcore raises its own error."""
    with monkeypatch.context() as patch:
        patch.setattr(job_directory, "PROTOCOL_VERSION", 2)
        data = job_directory.encode_record({})

    with pytest.raises(NewerProtocol):
        job_directory.decode_record(data)


def test_readers_never_see_half_a_record(directory):
    """While a record is replaced over and over, a reader finds a whole one each time."""
    job_directory.write_record(directory, job_directory.STOP, {"n": 0, "text": ""})

    def write():
        for n in range(300):
            job_directory.write_record(directory, job_directory.STOP, {"n": n, "text": "x" * n})

    with ThreadPoolExecutor(1) as executor:
        writing = executor.submit(write)
        while not writing.done():
            record = job_directory.read_record(directory, job_directory.STOP)
            assert record is not None
            assert len(record["text"]) == record["n"]
        writing.result()


def test_exit_record_is_of_one_run(directory):
    """A record is read with its token, and ignored with another."""
    token = "ab" * 16
    record = job_directory.ExitRecord(
        token=token, reason="exited", wait_status=768, errno=None, unreaped=(5, 7), cpu_us=9
    )

    job_directory.write_exit(directory, record)
    found = job_directory.read_exit(directory, token)

    assert vars(found) == vars(record)
    assert job_directory.read_exit(directory, "cd" * 16) is None


def test_an_older_host_finds_no_field_that_it_does_not_know(directory):
    """One that runs on while its package is upgraded reads verdicts of newer supervisors."""
    token = "ab" * 16
    job_directory.write_exit(directory, job_directory.ExitRecord(token=token, reason="exited"))
    record = job_directory.read_record(directory, job_directory.EXIT)

    assert record is not None
    assert "left" not in record


# --- spool ---


def put(directory, offset, data):
    descriptor = os.open(
        f"{job_directory.SPOOL}{offset}", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=directory
    )
    os.write(descriptor, data)
    os.close(descriptor)


def test_spool_is_read_across_its_files(directory):
    """An offset leads to the file that holds it, and a read ends with that file."""
    assert job_directory.spool_end(directory) == 0
    assert job_directory.read_spool(directory, 0, 10) == b""
    put(directory, 0, b"0123456789")
    put(directory, 10, b"abc")

    assert job_directory.spool_offsets(directory) == [0, 10]
    assert job_directory.spool_end(directory) == 13
    assert job_directory.read_spool(directory, 4, 100) == b"456789"
    assert job_directory.read_spool(directory, 10, 2) == b"ab"
    assert job_directory.read_spool(directory, 13, 10) == b""


def test_imported_files_are_dropped_but_for_the_last(directory):
    """A file is removed if its successor begins in the imported part; the last one stays."""
    for offset in (0, 10, 20):
        put(directory, offset, b"x" * 10)

    job_directory.drop_imported(directory, 19)
    assert job_directory.spool_offsets(directory) == [10, 20]
    job_directory.drop_imported(directory, 30)
    assert job_directory.spool_offsets(directory) == [20]
    assert job_directory.read_spool(directory, 15, 10) == b""


def test_lock_is_found_in_a_list_that_changes_while_it_is_read(tmp_path, monkeypatch):
    """A lock that is missed, as others were released between two reads, is looked for again."""
    byte = job_directory.spans_of("a" * 32)[1][0]
    others = "".join(f"{n}: OFDLCK ADVISORY  WRITE -1 fe:00:1 0 0\n" for n in range(100))
    lists = [tmp_path / "missed", tmp_path / "whole"]
    lists[0].write_text(others)
    lists[1].write_text(f"{others}9: OFDLCK ADVISORY  WRITE -1 fe:00:1 {byte} {byte}\n")
    left = [*lists]
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.FileIO(left.pop(0)))

    assert job_directory.is_run_locked("a" * 32)
    assert left == []
