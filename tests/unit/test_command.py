"""Command: what can never run is refused at once, and what can is stored as it was given."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobcore import Command, CommandError
from jobcore.checks import LONGEST
from jobcore.command import DEFAULT_GRACE, MOST_BYTES
from tests.cases import each
from tests.processes import in_child

CANARY = "s3cr3t-canary"

_BYTES = st.binary(min_size=1, max_size=30).filter(lambda data: b"\0" not in data)
# Text of any kind that the kernel can be given; surrogates stand for bytes that are no UTF-8.
_TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30
)
_WORD = st.one_of(_TEXT, _BYTES, _BYTES.map(os.fsdecode))
_NAME = _WORD.filter(lambda word: "=" not in os.fsdecode(word))
_COMMANDS = st.fixed_dictionaries(
    {"argv": st.lists(_WORD, min_size=1, max_size=4)},
    optional={
        "cwd": st.sampled_from(["/", "/tmp/x", "relative", b"/\xff"]),
        "env": st.dictionaries(_NAME, _WORD, max_size=3),
        "inherit_env": st.booleans(),
        "stdin": st.none() | st.binary(max_size=50) | st.just("/etc/passwd"),
        "timeout": st.none() | st.floats(0, LONGEST, exclude_min=True) | st.integers(1, 10**9),
        "grace": st.floats(0, LONGEST),
        "output_limit": st.none() | st.integers(0, 2**63 - 1),
        "separate_streams": st.booleans(),
        "unbuffered": st.booleans(),
        "stdout_to": st.none() | st.sampled_from(["/tmp/x", "relative", b"/\xff"]),
        "redact": st.lists(_WORD, max_size=3),
        "umask": st.none() | st.integers(0, 0o777),
        "stop_signal": st.sampled_from([signal.SIGINT, "SIGHUP", "usr1", 40]),
        "stop_scope": st.sampled_from(["main", "group"]),
        "linger": st.floats(0, LONGEST),
    },
)


@given(_COMMANDS)
@example({"argv": [b"\xff\xfe", "\udc80", "é", "\U0001f600"]})
@example({"argv": ["\udcc3\udca9"]})  # two escaped bytes that together are UTF-8
@example({"argv": ["true"], "stdin": bytes(range(256))})
def test_stored_command_comes_back(fields):
    """A stored command comes back equal, also with bytes that are not UTF-8."""
    command = Command(**fields)
    stored = command.to_json()
    back = Command.from_json(stored)

    assert back == command
    assert back.to_json() == stored
    assert [os.fsencode(word) for word in back.words] == [os.fsencode(w) for w in fields["argv"]]
    assert {os.fsencode(k): os.fsencode(v) for k, v in back.env.items()} == {
        os.fsencode(k): os.fsencode(v) for k, v in command.env.items()
    }


@given(_TEXT.map("true; ".__add__))
def test_stored_shell_command_comes_back(text):
    """A shell command is stored as one string."""
    command = Command(text, shell=True)

    assert Command.from_json(command.to_json()) == command
    assert command.words == ("/bin/sh", "-c", text)


@given(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
        st.lists(st.one_of(st.none(), st.integers(), st.text(), st.binary())),
        st.dictionaries(st.text(), st.text()),
    )
)  # fmt: skip
def test_any_argv_is_taken_or_refused(argv):
    """Whatever is given as argv, the answer is a command or a CommandError, nothing else."""
    try:
        command = Command(argv)
    except CommandError:
        return
    assert Command.from_json(command.to_json()) == command


@each(
    ("fields", "told"),
    [
        ({"argv": []}, "argv is empty"),
        ({"argv": ()}, "argv is empty"),
        ({"argv": [""]}, r"argv\[0\] is empty"),
        ({"argv": "echo hello"}, "list of words"),
        ({"argv": b"echo"}, "list of words"),
        ({"argv": Path("/bin/true")}, "list of words"),
        ({"argv": None}, "list of words"),
        ({"argv": {"echo"}}, "list of words"),
        ({"argv": iter(["echo"])}, "list of words"),
        ({"argv": bytearray(b"echo")}, "must be text"),
        ({"argv": ["echo", 1]}, r"argv\[1\] must be text, not int"),
        ({"argv": ["echo", None]}, r"argv\[1\]"),
        ({"argv": ["echo", "a\0b"]}, r"argv\[1\] contains a NUL"),
        ({"argv": ["echo", b"a\0b"]}, r"argv\[1\] contains a NUL"),
        ({"argv": ["echo", "\ud800"]}, "cannot be encoded"),
        ({"argv": "", "shell": True}, "not empty"),
        ({"argv": " \n", "shell": True}, "not empty"),
        ({"argv": ["echo"], "shell": True}, "one string"),
        ({"argv": "echo \0", "shell": True}, "NUL"),
        ({"cwd": ""}, "cwd is empty"),
        ({"cwd": "a\0b"}, "cwd contains a NUL"),
        ({"cwd": 3}, "cwd must be text"),
        ({"env": [("A", "b")]}, "env must be a mapping"),
        ({"env": {"": "x"}}, "a name in env"),
        ({"env": {"A=B": "x"}}, "a name in env"),
        ({"env": {b"A=B": "x"}}, "a name in env"),
        ({"env": {"A\0": "x"}}, "NUL"),
        ({"env": {"A": "x\0"}}, "NUL"),
        ({"env": {"A": None}}, "must be text"),
        ({"env": {1: "x"}}, "must be text"),
        ({"stdin": ""}, "stdin is an empty path"),
        ({"stdin": "a\0b"}, "stdin contains a NUL"),
        ({"stdin": 0}, "stdin must be text"),
        ({"redact": "secret"}, "list of values"),
        ({"redact": b"secret"}, "list of values"),
        ({"redact": ["secret", ""]}, "mask everything"),
        ({"redact": [1]}, "must be text"),
        ({"output_limit": -1}, "output_limit"),
        ({"output_limit": 1.5}, "output_limit"),
        ({"output_limit": True}, "output_limit"),
        ({"output_limit": 2**63}, "output_limit"),
        ({"umask": -1}, "umask"),
        ({"stop_signal": "SIGNONE"}, "stop_signal must be a signal"),
        ({"stop_signal": True}, "stop_signal must be a signal"),
        ({"stop_signal": 0}, "a signal of this system"),
        ({"stop_signal": 65}, "a signal of this system"),
        ({"stop_signal": "SIGKILL"}, "grace=0"),
        ({"stop_signal": "TSTP"}, "pauses a program"),
        ({"stop_signal": "SIG_DFL"}, "stop_signal must be a signal"),
        ({"stop_scope": "all"}, "stop_scope"),
        ({"linger": -1}, "linger"),
        ({"linger": None}, "linger"),
        ({"umask": 0o1000}, "umask"),
        ({"umask": True}, "umask"),
        ({"umask": "022"}, "umask"),
        ({"inherit_env": "no"}, "inherit_env"),
        ({"unbuffered": 1}, "unbuffered"),
        ({"separate_streams": 1}, "separate_streams"),
        ({"shell": "yes"}, "shell"),
    ],
)
def test_impossible_command_is_refused(fields, told):
    """A mistake raises where it is made, and the message names the wrong part."""
    with pytest.raises(CommandError, match=told):
        Command(**{"argv": ["true"], **fields})


@each(
    "seconds",
    [
        0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf, True, False, "3", Decimal(3),
        2 * LONGEST, 10**400, -(10**400), [], ...,
    ],
)  # fmt: skip
def test_time_out_is_finite_and_above_0(seconds):
    """A time-out that is not a finite number of seconds above 0 is refused."""
    with pytest.raises(CommandError, match="timeout"):
        Command(["true"], timeout=seconds)


@pytest.mark.parametrize(
    "seconds", [-1, -0.001, math.nan, math.inf, True, None, "3", 2 * LONGEST, 10**400], ids=repr
)
def test_grace_is_finite_and_not_negative(seconds):
    """A grace that is not a finite number of seconds, 0 or more, is refused."""
    with pytest.raises(CommandError, match="grace"):
        Command(["true"], grace=seconds)


def test_zero_grace_and_no_limit_are_allowed():
    """A grace of 0 kills at once, and a time-out of None means no limit."""
    command = Command(["true"], grace=0, timeout=None)

    assert (command.grace, command.timeout) == (0.0, None)
    assert Command(["true"]).grace == DEFAULT_GRACE
    assert Command(["true"], timeout=5e-324).timeout == 5e-324


def test_cwd_is_absolute_as_of_the_call(tmp_path, monkeypatch):
    """A queued job runs where its creator stood, wherever the manager that starts it stands."""
    monkeypatch.chdir(tmp_path)
    made = [Command(["true"]), Command(["true"], cwd="sub"), Command(["true"], stdin="in.txt")]
    monkeypatch.chdir("/")

    assert [command.cwd for command in made] == [
        str(tmp_path), str(tmp_path / "sub"), str(tmp_path),
    ]  # fmt: skip
    assert made[2].stdin == str(tmp_path / "in.txt")
    assert Command.from_json(made[0].to_json()).cwd == str(tmp_path)


def test_a_removed_current_directory_is_a_command_error(tmp_path):
    """Where the current directory is gone, a command that needs it is refused as such."""

    def try_it():
        gone = tmp_path / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()
        with pytest.raises(CommandError, match="current directory"):
            Command(["true"])
        with pytest.raises(CommandError, match="current directory"):
            Command(["true"], cwd="/", stdin="relative")
        return Command(["true"], cwd="/").cwd

    assert in_child(try_it) == "/"


def test_secrets_are_in_no_repr():
    """The values of env, stdin and redact are in neither the repr nor an error."""
    secrets = {"env": {"A": CANARY}, "stdin": CANARY.encode(), "redact": [CANARY]}
    shown = [repr(Command(["true"], **secrets)), str(Command(["true"], **secrets))]
    for wrong in (
        {"env": {"A": CANARY + "\0"}},
        {"env": {"A": CANARY + "\ud800"}},
        {"redact": [CANARY + "\0"]},
        {"redact": [CANARY + "\ud800"]},
        {**secrets, "timeout": -1},
        {**secrets, "argv": []},
        {**secrets, "stdin": CANARY + "\0"},
    ):
        with pytest.raises(CommandError) as refused:
            Command(**{"argv": ["true"], **wrong})
        shown.append(repr(refused.value))

    assert [text for text in shown if CANARY in text] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"env": {"TOKEN": CANARY + "\ud800"}},
        {"env": {CANARY + "\ud800": "value"}},
        {"redact": [CANARY + "\ud800"]},
        {"argv": ["true", CANARY + "\ud800"]},
    ],
    ids=["a value", "a name", "what is masked", "a word"],
)
def test_a_refusal_has_no_cause_that_holds_a_secret(fields):
    """The cause and the context of an error, which hosts log too, contain no value."""
    with pytest.raises(CommandError, match="encoded") as refused:
        Command(**{"argv": ["true"], **fields})

    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None


def test_too_large_a_command_is_refused():
    """A command far above the kernel's limit is refused, and not stored."""
    with pytest.raises(CommandError, match="larger"):
        Command(["echo", "x" * MOST_BYTES])
    with pytest.raises(CommandError, match="larger"):
        Command(["cat"], stdin=b"x" * MOST_BYTES)


def test_command_is_frozen():
    """A command does not change after it was checked."""
    command = Command(["true"])

    for name in ("argv", "timeout", "env"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(command, name, None)
    assert isinstance(command.argv, tuple)


def test_command_keeps_no_hold_on_what_it_was_given():
    """Later changes of the caller's lists and mappings do not change the command."""
    argv, env, redact = ["echo", "a"], {"A": "b"}, ["x"]
    command = Command(argv, env=env, redact=redact)
    before = command.to_json()
    argv.append("b")
    env["C"] = "d"
    redact.append("y")

    assert command.to_json() == before


def test_words_may_be_of_every_kind_that_the_kernel_takes():
    """Text, bytes and paths are words; they are stored in one form."""
    command = Command(["cat", b"\xff", Path("/tmp/x")])

    assert command.argv == ("cat", "\udcff", "/tmp/x")
    assert json.loads(command.to_json())["argv"] == ["cat", "\udcff", "/tmp/x"]
    assert Command(["a"]) == Command([b"a"]) == Command([Path("a")])


def test_a_shell_command_can_be_replaced():
    """`dataclasses.replace` works on a shell command as on any other."""
    command = dataclasses.replace(Command("echo a; echo b", shell=True), timeout=5)

    assert command.words == ("/bin/sh", "-c", "echo a; echo b")
    assert command.timeout == 5


@pytest.mark.parametrize("proc", [True, False])
def test_umask_is_that_of_its_maker(monkeypatch, proc):
    """A command has the umask of the process that creates it; reading it does not change it."""

    def open_nothing(*_arguments, **_options):
        raise FileNotFoundError

    if not proc:
        monkeypatch.setattr("builtins.open", open_nothing)
    before = os.umask(0o027)
    try:
        made = Command(["true"])
        assert os.umask(0) == 0o027
    finally:
        os.umask(before)

    assert made.umask == 0o027
    assert Command.from_json(made.to_json()).umask == 0o027
    assert Command(["true"], umask=0o022).umask == 0o022


@pytest.mark.parametrize(
    ("given", "kept"),
    [("SIGINT", signal.SIGINT), ("int", signal.SIGINT), (2, signal.SIGINT), (40, 40)],
)
def test_stop_signal_is_a_signal_its_number_or_its_name(given, kept):
    """It is stored by its name in `signal`, or as a number if it has none."""
    command = Command(["true"], stop_signal=given)

    assert command.stop_signal == kept
    assert Command.from_json(command.to_json()) == command
