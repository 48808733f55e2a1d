"""Environment files: what their lines mean, and that errors show no value."""

from __future__ import annotations

import pytest

from jobcore import CommandError, env_file


@pytest.fixture
def read(tmp_path):
    """Return a function that reads a file with these bytes."""

    def call(content):
        path = tmp_path / "app.env"
        path.write_bytes(content)
        return env_file.read(str(path))

    return call


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=1", "1"), ("A=", ""), ("  A = 1 2  ", "1 2"), ("export A=1", "1"), ("A=a=b", "a=b"),
        ("A=a#b # c", "a#b # c"), ("A='a \\n'", "a \\n"), ('A="a \\n\\t\\"\\\\"', 'a \n\t"\\'),
        ("A=it's", "it's"), ("A=$HOME", "$HOME"), ("A=é\r", "é"), ("A=a\u2028b", "a\u2028b"),
        ('A=""', ""),
    ],
)  # fmt: skip
def test_value_of_a_line(read, line, value):
    assert read(f"# comment\n\n{line}\n".encode()) == {"A": value}


def test_last_value_of_a_name_counts(read):
    assert read(b"\xef\xbb\xbfA=1\nB=2\nA=3") == {"A": "3", "B": "2"}


@pytest.mark.parametrize(
    "line",
    ["hunter2", "A hunter2", "1A=hunter2", "A='hunter2", 'A="hunter2', "A='hun'ter2'",
     'A="hunter2\\"', "=hunter2", "A=hunter2\0"],
)  # fmt: skip
def test_wrong_line_is_named_without_its_value(read, line):
    with pytest.raises(CommandError, match=r"app\.env:2: it must be KEY=VALUE") as caught:
        read(f"A=1\n{line}\n".encode())

    assert "hunter2" not in str(caught.value)


def test_files_that_are_not_small_text_are_refused(read, monkeypatch):
    with pytest.raises(CommandError, match="is not UTF-8 text"):
        read(b"A=\xff")
    monkeypatch.setattr(env_file, "MOST_BYTES", 10)
    with pytest.raises(CommandError, match="is larger than 10 bytes"):
        read(b"A=123456789")
