"""Command: what to run and how, validated at once, without running it."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from jobcore.errors import CommandError, DatabaseCorrupt

#: Seconds between the first signal of a stop and SIGKILL; a third of what Kubernetes gives.
DEFAULT_GRACE = 10.0
#: Seconds between SIGTERM and SIGKILL for what a command has left. A daemon is not a job.
DEFAULT_LINGER = 2.0
#: Signals that no program can handle.
_UNHANDLED = (signal.SIGKILL, signal.SIGSTOP)
#: Signals that SIGCONT removes before they are handled.
_PAUSING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
#: About 30 years: more is a slip, and would overflow the timers of some systems.
LONGEST = 1e9
#: Bytes of a stored command: far above what the kernel takes (2 MiB as a rule), far below harm.
LARGEST = 16 * 2**20


@dataclass(frozen=True)
class Command:
    """
    What to run, and how.

    It is checked when it is made, so a mistake is met where it was made, not
    when the job's turn comes. Whether the program exists is known only then.

    Args:
        argv: Program and arguments, never through a shell; with `shell` one string for it.
        cwd: Working directory; made absolute now. None: the current one.
        env: Variables over the base environment, which is that of the process
            that starts the job, unless `submit` says otherwise. Stored in the
            database (mode 0600), printed nowhere.
        inherit_env: False: no base environment, but `env` alone. The variables that
            jobcore sets are added in either case.
        stdin: Bytes to be read as standard input, or the path of a file; None: nothing.
        timeout: Seconds until the command is stopped; None: no limit.
        grace: Seconds between the first signal and SIGKILL, when it is stopped or timed out.
        output_limit: Bytes of output kept; lines beyond are counted and dropped. None: all.
        separate_streams: Tag lines as stdout or stderr. Each has its own pipe
            then, so the order *between* the two is only that of reading.
        redact: Values that are masked with `***` before any output reaches the disk,
            and in `repr`. Values of 6 bytes or more are also masked in JSON, in URLs, as
            a `repr` writes them, and within base64; shorter ones also in JSON. They are
            stored as `env` is.
        umask: The command's, from 0 to 0o777; None: that of this process, as of now.
        shell: Run `argv`, one string, by `/bin/sh -c`.
        stop_signal: What a stop or a time-out sends first: a signal, its number or its name.
            `signal.SIGINT` for programs that save their work on KeyboardInterrupt.
        stop_scope: Who gets that: `main`, the command's own process alone, which ends its
            children in good order; or `group`, all processes of the job at once. With `main`
            the others get SIGTERM once their parents have ended, or `linger` seconds (at most
            half the grace) before the grace is over. SIGKILL ends what is left, in either case.
        linger: Seconds between SIGTERM and SIGKILL for processes that still run a second (at
            most half the linger) after the command has ended by itself.
        unbuffered: Set `PYTHONUNBUFFERED=1`, so what a Python program prints is seen at once;
            `env` may say otherwise. Printing then costs it several times the CPU, and lines
            of a process pool get mixed, as `print` writes text and newline one by one.
            False: the variable is not set, nor inherited, so Python writes blocks, and whole
            lines where the program flushes them.

    Raises:
        CommandError: It could never run; the message says which part and why.
    """

    argv: Sequence[str | bytes | os.PathLike[str]] | str
    cwd: str | os.PathLike[str] | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherit_env: bool = True
    stdin: bytes | str | os.PathLike[str] | None = field(default=None, repr=False)
    timeout: float | None = None  # seconds
    grace: float = DEFAULT_GRACE  # seconds
    output_limit: int | None = None  # bytes
    separate_streams: bool = False
    redact: Sequence[str | bytes] = field(default=(), repr=False)
    umask: int | None = None
    shell: bool = False
    stop_signal: int | str = signal.SIGTERM
    stop_scope: Literal["main", "group"] = "main"
    linger: float = DEFAULT_LINGER  # seconds
    unbuffered: bool = True

    def __post_init__(self) -> None:
        """Check every part, and bring it into the form in which it is stored."""
        for name in ("inherit_env", "separate_streams", "shell", "unbuffered"):
            if not isinstance(getattr(self, name), bool):
                raise CommandError(f"{name} is True or False, not {getattr(self, name)!r}")
        put = object.__setattr__  # the way of a frozen dataclass to fill itself
        put(self, "argv", _checked_argv(self.argv, shell=self.shell))
        put(self, "cwd", _checked_cwd(self.cwd))
        put(self, "env", _checked_env(self.env))
        put(self, "stdin", _checked_stdin(self.stdin))
        put(self, "timeout", checked_timeout(self.timeout))
        put(self, "grace", checked_grace(self.grace))
        put(self, "stop_signal", _checked_signal(self.stop_signal))
        put(self, "linger", _checked_seconds(self.linger, "a linger"))
        put(self, "redact", _checked_redact(self.redact))
        if self.output_limit is not None and not _is_whole(self.output_limit, 0, 2**63 - 1):
            raise CommandError(f"output_limit must be a number of bytes, not {self.output_limit!r}")
        if self.stop_scope not in ("main", "group"):
            raise CommandError(f'stop_scope is "main" or "group", not {self.stop_scope!r}')
        if self.umask is None:
            put(self, "umask", _current_umask())
        if not _is_whole(self.umask, 0, 0o777):
            raise CommandError(f"umask must be between 0 and 0o777, not {self.umask!r}")
        if len(self.to_json()) > LARGEST:
            raise CommandError(
                f"the command is larger than {LARGEST} bytes: put its input into a file, and name "
                "that as its stdin"
            )

    def __repr__(self) -> str:
        """Return it without `env`, `stdin` and `redact`, and with what is to be masked so."""
        mask = _mask_of([encode(str(value)) for value in self.redact])
        shown = (
            f"{one.name}={mask(getattr(self, one.name))!r}" for one in fields(self) if one.repr
        )
        return f"{type(self).__qualname__}({', '.join(shown)})"

    @property
    def words(self) -> tuple[str, ...]:
        """The argument vector that is executed, the shell included where there is one."""
        return ("/bin/sh", "-c", *self._argv) if self.shell else self._argv

    @property
    def _argv(self) -> tuple[str, ...]:
        return tuple(map(str, self.argv))  # texts since `__post_init__`

    def to_json(self) -> str:
        """Return the form in which it is stored."""
        stdin: Any = self.stdin
        if isinstance(stdin, bytes):
            stdin = {"data": stdin.decode("latin-1")}
        return json.dumps(
            {
                "argv": self._argv,
                "cwd": self.cwd,
                "env": dict(self.env),
                "inherit_env": self.inherit_env,
                "stdin": stdin,
                "timeout": self.timeout,
                "grace": self.grace,
                "stop_signal": self.stop_signal,
                "stop_scope": self.stop_scope,
                "linger": self.linger,
                "output_limit": self.output_limit,
                "separate_streams": self.separate_streams,
                "redact": self.redact,
                "umask": self.umask,
                "shell": self.shell,
                "unbuffered": self.unbuffered,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Command:
        """
        Return what `to_json` was called on.

        Args:
            text: What it returned.

        Raises:
            DatabaseCorrupt: It is something else.
        """
        try:
            stored = json.loads(text)
            # As texts of this process's encoding, which are checked and kept like a caller's.
            for name in ("argv", "redact"):
                stored[name] = [os.fsdecode(encode(word)) for word in stored[name]]
            stored["cwd"] = os.fsdecode(encode(stored["cwd"]))
            stored["env"] = {
                os.fsdecode(encode(name)): os.fsdecode(encode(value))
                for name, value in stored["env"].items()
            }
            if isinstance(stored["stdin"], dict):
                stored["stdin"] = stored["stdin"]["data"].encode("latin-1")
            elif stored["stdin"] is not None:
                stored["stdin"] = os.fsdecode(encode(stored["stdin"]))
            if stored["shell"]:
                (stored["argv"],) = stored["argv"]
            return cls(**stored)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            why = f"a stored command makes no sense: {type(error).__name__}"
        # Outside, for a cause or a context would hold the text, and with it what is secret.
        raise DatabaseCorrupt(why)


def _mask_of(redact: list[bytes]) -> Callable[[Any], Any]:
    """Return what masks these values in a text, or in each text of a tuple."""
    if not redact:
        return lambda value: value
    from jobcore.supervisor import redaction  # noqa: PLC0415 - a host that masks nothing

    values = redaction.Values(redact)

    def mask(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(mask, value))
        if isinstance(value, str):
            return values.mask(encode(value)).decode("utf-8", "surrogateescape")
        return value

    return mask


def encode(text: str) -> bytes:
    """
    Return the bytes that a word of a command is for the kernel.

    They are those of the process that made the command, whatever encoding its locale
    has, and whatever that of the process is which starts it.
    """
    return text.encode("utf-8", "surrogateescape")


def checked_timeout(timeout: float | None) -> float | None:
    """
    Return `timeout` in seconds.

    Raises:
        CommandError: It is not a finite number above 0, nor None. 0 is refused:
            elsewhere it means "at once", "never" or "some default".
    """
    if timeout is None:
        return None
    if not _is_number(timeout) or not 0 < timeout <= LONGEST:
        raise CommandError(f"a time-out is seconds above 0, or None for no limit, not {timeout!r}")
    return float(timeout)


def checked_grace(grace: float) -> float:
    """
    Return `grace` in seconds; 0 kills at once.

    Raises:
        CommandError: It is not a finite number, 0 or more.
    """
    return _checked_seconds(grace, "a grace")


def _checked_seconds(value: float, what: str) -> float:
    if not _is_number(value) or not 0 <= value <= LONGEST:
        raise CommandError(f"{what} is 0 or more seconds, not {value!r}")
    return float(value)


def _checked_signal(value: int | str) -> int:
    """Return the number of the signal, with which a Command's repr can be evaluated."""
    number: object = value
    if isinstance(value, str):
        name = value.upper()
        found = getattr(signal, name if name.startswith("SIG") else f"SIG{name}", None)
        number = found if isinstance(found, signal.Signals) else None
    if isinstance(number, bool) or not isinstance(number, int):
        raise CommandError(f"stop_signal is a signal, its number or its name, not {value!r}")
    if number not in signal.valid_signals():
        raise CommandError(f"stop_signal is a signal of this system, not {value!r}")
    if number in _PAUSING:
        raise CommandError(
            f"{value!r} pauses a program, and the SIGCONT that follows each stop takes it back"
        )
    if number in _UNHANDLED:
        raise CommandError(f"no program can handle {value!r}: use grace=0 to kill it at once")
    return int(number)


def _current_umask() -> int:
    """Return the umask of this process."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass  # no /proc
    # It can only be read by setting it: for a moment other threads have a strict one.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)  # of any size: isfinite overflows


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _checked_text(value: object, what: str) -> str:
    """Return the text that `encode` makes the word's bytes of: what is no UTF-8 is a surrogate."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise CommandError(f"{what} must be text, not {type(value).__name__}")
    try:
        raw = os.fsencode(value)
    except UnicodeEncodeError:
        raw = None
    # Here, for the cause would hold the value, which may be a secret.
    if raw is None:
        raise CommandError(f"{what} contains a character that cannot be encoded")
    if b"\0" in raw:
        raise CommandError(f"{what} contains a NUL byte, which no program can be given")
    return raw.decode("utf-8", "surrogateescape")


def _absolute(path: str, what: str) -> str:
    try:
        return os.path.abspath(encode(path)).decode("utf-8", "surrogateescape")
    except FileNotFoundError as error:
        raise CommandError(f"{what} has no place: the current directory is gone") from error


def _checked_argv(argv: object, *, shell: bool) -> tuple[str, ...]:
    if shell:
        if isinstance(argv, tuple) and len(argv) == 1:
            (argv,) = argv  # as it is kept: `dataclasses.replace` gives it back so
        if not isinstance(argv, str) or not argv.strip():
            raise CommandError("with shell=True, argv is one string that is not empty")
        return (_checked_text(argv, "the shell command"),)
    if isinstance(argv, (str, bytes, os.PathLike)):
        raise CommandError(
            f"argv must be a list of words, not one {type(argv).__name__}: "
            'write ["program", "argument"], or Command(..., shell=True) to have a shell split it'
        )
    if not isinstance(argv, Sequence):
        raise CommandError(f"argv must be a list of words, not {type(argv).__name__}")
    if not argv:
        raise CommandError("argv is empty: there is no program to run")
    words = tuple(_checked_text(word, f"argv[{index}]") for index, word in enumerate(argv))
    if not words[0]:
        raise CommandError("argv[0] is empty: there is no program to run")
    return words


def _checked_cwd(cwd: object) -> str:
    # As of the call: a queued job may be started by a manager that stands elsewhere.
    text = _checked_text("" if cwd is None else cwd, "cwd")
    if cwd is not None and not text:
        raise CommandError("cwd is empty")
    return _absolute(text, "cwd")


def _checked_env(env: object) -> dict[str, str]:
    if not isinstance(env, Mapping):
        raise CommandError(f"env must be a mapping, not {type(env).__name__}")
    checked = {}
    for name, value in env.items():
        # The value is a secret more often than not: no message shows it.
        name_text = _checked_text(name, "the name of a variable in env")
        if not name_text or "=" in name_text:
            # Of KEY=VALUE given as a name the rest is what nobody is to see.
            shown = name_text.partition("=")[0]
            raise CommandError(
                f"what is empty or has a '=' cannot be the name of a variable in env: {shown!r}"
            )
        checked[name_text] = _checked_text(value, f"env[{name_text!r}]")
    return checked


def _checked_stdin(stdin: object) -> bytes | str | None:
    if stdin is None or isinstance(stdin, bytes):
        return stdin
    path = _checked_text(stdin, "stdin")
    if not path:
        raise CommandError("stdin is an empty path; bytes would be the input itself")
    return _absolute(path, "stdin")


def _checked_redact(redact: object) -> tuple[str, ...]:
    if isinstance(redact, (str, bytes)) or not isinstance(redact, Sequence):
        raise CommandError("redact must be a list of values")
    values = tuple(_checked_text(value, "a value in redact") for value in redact)
    if not all(values):
        raise CommandError("an empty value in redact would mask everything")
    return values
