"""Result file: whole or not at all, for its owner alone, and whatever else lies there is none."""

from __future__ import annotations

import os
import resource
import stat

import pytest

from jobcore.supervisor import NewerProtocol, result_file
from tests.processes import descriptors, in_child


@pytest.fixture
def place(tmp_path):
    """Return the path of a job directory."""
    path = tmp_path / "job"
    path.mkdir(mode=0o700)
    return path


def write(place, encoding="json", data=b"{}"):
    result_file.write(str(place), result_file.identify(str(place)), encoding, data)


def read(place):
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return result_file.read(directory)
    finally:
        os.close(directory)


@pytest.mark.parametrize("encoding", ["json", "pickle"])
@pytest.mark.parametrize("data", [b"", b"null", os.urandom(1000), b"\0" * result_file.LARGEST])
def test_written_result_is_read_back(place, encoding, data):
    """Encoding and bytes come back; nothing else stays in the directory."""
    before = descriptors()
    write(place, encoding, data)

    assert read(place) == (encoding, data)
    assert os.listdir(place) == ["result"]
    assert descriptors() == before


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_result_file_is_private(place, umask):
    """Its mode is 0600 whatever the umask of the function is."""
    before = os.umask(umask)
    try:
        write(place)
    finally:
        os.umask(before)

    assert stat.S_IMODE((place / "result").stat().st_mode) == 0o600


def test_torn_result_file_is_ignored(place):
    """A file that is cut, too long, or has a changed byte counts as missing."""
    write(place, "json", b'{"a": 1}')
    whole = (place / "result").read_bytes()
    torn = [whole[:size] for size in range(len(whole))] + [whole + b"x"]
    # Any byte but the encoding, which comes below, and the padding, which says nothing.
    torn += [
        whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :]
        for at in range(len(whole))
        if at not in (5, 6, 7)
    ]
    torn.append(whole[:5] + b"\x01" + whole[6:])  # of the other encoding, by its header
    torn.append(whole[:5] + b"\x02" + whole[6:])
    found = []
    for content in torn:
        (place / "result").write_bytes(content)
        try:
            found.append(read(place))
        except NewerProtocol:
            found.append(None)  # by a changed version

    assert found == [None] * len(torn)
    (place / "result").write_bytes(whole)
    assert read(place) == ("json", b'{"a": 1}')


def test_one_of_a_newer_version_is_left_alone(place):
    """A file of a newer jobcore raises NewerProtocol."""
    write(place)
    whole = bytearray((place / "result").read_bytes())
    whole[4] += 1
    (place / "result").write_bytes(whole)

    with pytest.raises(NewerProtocol):
        read(place)


@pytest.mark.parametrize("thing", ["nothing", "a link", "a FIFO", "a directory", "a huge file"])
def test_irregular_result_file_is_ignored(place, thing):
    """No link is followed, nothing blocks, and nothing beyond the limit is read."""
    path = place / "result"
    if thing == "a link":
        write(place)
        path.rename(place / "elsewhere")
        path.symlink_to(place / "elsewhere")
    elif thing == "a FIFO":
        os.mkfifo(path)
    elif thing == "a directory":
        path.mkdir()
    elif thing == "a huge file":
        write(place, "json", b"x" * result_file.LARGEST)
        with path.open("ab") as file:
            file.write(b"x")

    assert read(place) is None


def fails_to_write(place):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    with pytest.raises(OSError, match="too large") as caught:
        write(place, "json", b"x" * 1000)
    return caught.value.errno, os.listdir(place)


def test_unwritable_result_leaves_no_file(place):
    """Where there is no room it fails, and leaves nothing."""
    assert in_child(fails_to_write, place)[1] == []
    assert read(place) is None


def test_a_directory_in_the_place_of_the_jobs_own_gets_nothing(place, tmp_path):
    """The directory is known by more than its name."""
    identity = result_file.identify(str(place))
    place.rename(tmp_path / "moved")
    place.mkdir(mode=0o700)
    with pytest.raises(FileNotFoundError):
        result_file.write(str(place), identity, "json", b"{}")

    assert os.listdir(place) == []


def test_temporary_error_is_not_a_missing_result(place):
    """Without a free descriptor it raises, instead of returning that there is no result."""
    write(place)
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        with pytest.raises(OSError, match="open files"):
            result_file.read(directory)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(directory)
