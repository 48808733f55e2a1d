"""Command: what to run and how. It is validated when it is created."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from jobcore import checks
from jobcore.errors import CommandError, DatabaseCorrupt

#: Seconds between the first signal of a stop and SIGKILL; Kubernetes allows three times as many.
DEFAULT_GRACE = 10.0
#: Seconds between SIGTERM and SIGKILL for processes that a command left running.
DEFAULT_LINGER = 2.0
#: Signals that no program can handle.
_UNHANDLED = (signal.SIGKILL, signal.SIGSTOP)
#: Signals that only pause a process: SIGCONT discards them while they are pending.
_PAUSING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
#: Bytes of a stored command: far more than the kernel accepts (usually 2 MiB), and harmless.
MOST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Command:
    """
    What to run, and how.

    A command is checked when it is created, so a mistake is reported there and not when
    the job starts. Only whether the program exists is not checked before the start.

    Args:
        argv: Program and arguments, run without a shell. With `shell`, one string.
        cwd: Working directory; made absolute now. None: the current one.
        env: Variables set on top of the base environment, which is that of the process
            that starts the job, unless `env_from` says otherwise. They are stored in the database
            (mode 0600) and never printed.
        inherit_env: False: start from an empty environment instead of the base environment.
            The variables that jobcore itself sets are added in either case.
        stdin: Bytes to use as standard input, or the path of a file; None: empty input.
        timeout: Seconds until the command is stopped; None: no limit.
        grace: Seconds between the first signal and SIGKILL when it is stopped or timed out.
        output_limit: Bytes of output to keep; lines beyond that are counted and dropped.
            None: no limit.
        separate_streams: Tag each line as stdout or stderr. Each stream then has its own
            pipe, so lines of different streams are ordered only by when they were read.
        redact: Values that are replaced by `***` before any output reaches the disk, and in
            `repr`. Values of 6 bytes or more are also found in JSON, in URLs, as `repr`
            writes them, quoted for a shell, CSV or SQL, and within base64; shorter ones also in
            JSON. They are stored like `env`.
        umask: The command's umask, from 0 to 0o777; None: the current one of this process.
        shell: Run `argv`, one string, with `/bin/sh -c`.
        stop_signal: The first signal of a stop or a time-out: a signal, its number or its
            name. Use `signal.SIGINT` for programs that save their work on KeyboardInterrupt.
        stop_scope: Which processes get that signal. `main`: only the command's own process,
            which can then end its children in good order. The others get SIGTERM when their
            parents have ended, or `linger` seconds (at most half the grace) before the grace
            is over. `group`: all processes of the job at once. In both cases SIGKILL ends
            all that still run after the grace.
        linger: Seconds between SIGTERM and SIGKILL for processes that the command left
            running when it ended by itself. They get SIGTERM after one second (at most half
            the linger).
        unbuffered: Set `PYTHONUNBUFFERED=1`, so that the output of a Python program appears
            at once; `env` can override it. Printing then takes several times the CPU, and
            lines of a process pool get mixed, because `print` writes a text and its newline
            separately. False: the variable is neither set nor inherited, so Python writes
            blocks, or whole lines when the program flushes them.
        stdout_to: The path of a file that gets the bytes of stdout as well, unmasked; made
            absolute now. The log has all lines too: the command gets `separate_streams`. At the
            start, an existing file is emptied, and anything but a regular file is refused. While
            its disk is full, the command waits, as for the log.
        pty: Give the command a terminal of 80 columns and 24 lines, for programs that need
            one. Its output is one stream. Its standard input, unless `stdin` is given, is
            the terminal, and the first read from it finds the end of the input. `TERM` is
            `xterm` if the environment has none.

    Raises:
        CommandError: The command could never run; the message names the part and the cause.
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
    stdout_to: str | os.PathLike[str] | None = None
    pty: bool = False

    def __post_init__(self) -> None:
        """Check every part, and convert it to the form in which it is stored."""
        for name in ("inherit_env", "separate_streams", "shell", "unbuffered", "pty"):
            if not isinstance(getattr(self, name), bool):
                raise CommandError(f"{name} must be True or False, not {getattr(self, name)!r}")
        put = object.__setattr__  # a frozen dataclass can set its own fields only like this
        put(self, "argv", _checked_argv(self.argv, shell=self.shell))
        put(self, "cwd", _checked_cwd(self.cwd))
        put(self, "env", _checked_env(self.env))
        put(self, "stdin", _checked_stdin(self.stdin))
        put(self, "stdout_to", _checked_stdout_to(self.stdout_to))
        if self.pty and (self.stdout_to is not None or self.separate_streams):
            raise CommandError(
                "pty cannot be combined with stdout_to or separate_streams: "
                "a terminal has one stream"
            )
        if self.stdout_to is not None:
            put(self, "separate_streams", True)
        put(self, "stop_signal", _checked_signal(self.stop_signal))
        put(self, "redact", _checked_redact(self.redact))
        if self.umask is None:
            put(self, "umask", current_umask())
        put(self, "timeout", checked_timeout(self.timeout))
        put(self, "grace", checked_grace(self.grace))
        put(self, "linger", checks.seconds(self.linger, "linger", error=CommandError))
        if self.output_limit is not None:
            limit, most = self.output_limit, checks.LARGEST_INTEGER
            checks.integer(limit, "output_limit", 0, most, CommandError)
        checks.one_of(self.stop_scope, "stop_scope", ("main", "group"), CommandError)
        checks.integer(self.umask, "umask", 0, 0o777, CommandError)
        # Serializing it costs more than all else here, and is needed only if it might be too large.
        if self._text_size() > MOST_BYTES // 16 and len(self.to_json()) > MOST_BYTES:
            raise CommandError(
                f"the command is larger than {MOST_BYTES} bytes: put its input into a file, and "
                "pass the path as stdin"
            )

    def __repr__(self) -> str:
        """Return a text without `env`, `stdin` and `redact`, and with redacted values masked."""
        mask = _mask_of([encode(str(value)) for value in self.redact])
        shown = (
            f"{one.name}={mask(getattr(self, one.name))!r}" for one in fields(self) if one.repr
        )
        return f"{type(self).__qualname__}({', '.join(shown)})"

    @property
    def words(self) -> tuple[str, ...]:
        """The argument vector that is executed, including the shell if there is one."""
        return ("/bin/sh", "-c", *self._argv) if self.shell else self._argv

    @property
    def _argv(self) -> tuple[str, ...]:
        return tuple(map(str, self.argv))  # `__post_init__` has made them texts already

    def _text_size(self) -> int:
        """Return its characters and words, of each of which JSON makes at most 12 characters."""
        words: list[Any] = [*self.argv, self.cwd, *self.env, *self.env.values(), *self.redact]
        words += (self.stdin or "", self.stdout_to or "")
        return sum(map(len, words)) + len(words)

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
                "stdout_to": self.stdout_to,
                "pty": self.pty,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Command:
        """
        Return the command that `to_json` stored.

        Args:
            text: A text that `to_json` returned.

        Raises:
            DatabaseCorrupt: `text` is not a stored command.
        """
        try:
            stored = json.loads(text)
            # Convert to texts in this process's encoding, as if a caller had passed them.
            for name in ("argv", "redact"):
                stored[name] = [decode(word) for word in stored[name]]
            stored["cwd"] = decode(stored["cwd"])
            stored["env"] = {decode(name): decode(value) for name, value in stored["env"].items()}
            if isinstance(stored["stdin"], dict):
                stored["stdin"] = stored["stdin"]["data"].encode("latin-1")
            elif stored["stdin"] is not None:
                stored["stdin"] = decode(stored["stdin"])
            if stored.get("stdout_to") is not None:
                stored["stdout_to"] = decode(stored["stdout_to"])
            if stored["shell"]:
                (stored["argv"],) = stored["argv"]
            return cls(**stored)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            why = f"a stored command is invalid: {type(error).__name__}"
        # Outside the handler: a cause or a context would hold the text and its secrets.
        raise DatabaseCorrupt(why)


@dataclass(frozen=True)
class CommandView:
    """
    What a job runs, for people: `redact` values are masked, and no value of a variable is here.

    It cannot be submitted; to run a job again, use `retry_job`.

    Args:
        argv: Program and arguments; with `shell`, one string.
        shell: Whether `/bin/sh -c` runs it.
        cwd: Its working directory.
        env_names: The names of the variables that were set for it.
        timeout: Seconds until it is stopped; None: no limit.
        grace: Seconds between the first signal of a stop and SIGKILL.
        stop_signal: The number of the first signal of a stop.
    """

    argv: tuple[str, ...]
    shell: bool
    cwd: str
    env_names: tuple[str, ...]
    timeout: float | None
    grace: float
    stop_signal: int

    def __str__(self) -> str:
        """Return it as one would type it."""
        import shlex  # noqa: PLC0415 - not needed at import

        return self.argv[0] if self.shell else shlex.join(self.argv)

    @classmethod
    def from_json(cls, text: str | None) -> CommandView | None:
        """
        Return the view of a stored command; None: there is none, or it is damaged.

        Args:
            text: What `Command.to_json` returned, with or without its stdin.
        """
        if text is None:
            return None
        try:
            stored: dict[str, Any] = json.loads(text)
            mask = _mask_of([encode(value) for value in stored["redact"]])
            return cls(
                argv=tuple(map(_shown, mask(tuple(stored["argv"])))),
                shell=bool(stored["shell"]),
                cwd=_shown(mask(stored["cwd"])),
                env_names=tuple(map(_shown, stored["env"])),
                timeout=stored["timeout"],
                grace=stored["grace"],
                stop_signal=stored["stop_signal"],
            )
        except (ValueError, TypeError, LookupError, AttributeError):
            return None  # the job itself can still be read


def _shown(word: str) -> str:
    """Return a word with replacements for bytes that are not UTF-8."""
    return encode(word).decode("utf-8", "replace")


def _mask_of(redact: list[bytes]) -> Callable[[Any], Any]:
    """Return a function that masks these values in a text, or in each text of a tuple."""
    if not redact:
        return lambda value: value
    from jobcore.supervisor import redaction  # noqa: PLC0415 - only for hosts that mask values

    values = redaction.Values(redact)

    def mask(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(mask, value))
        if isinstance(value, str):
            return values.mask(encode(value)).decode("utf-8", "surrogateescape")
        return value

    return mask


def decode(text: str) -> str:
    """Return the text, in this process's encoding, of a word that was stored."""
    return text if text.isascii() else os.fsdecode(encode(text))


def encode(text: str) -> bytes:
    """
    Return the bytes that the kernel gets for a word of a command.

    They are the same bytes as in the process that created the command, whatever the
    encodings of that process and of the one that starts it.
    """
    return text.encode("utf-8", "surrogateescape")


def checked_timeout(timeout: Any) -> float | None:
    """
    Return `timeout` in seconds; None: no limit.

    0 is refused because other programs use it for "at once", "never" or "the default".
    """
    return (
        None if timeout is None else checks.positive_seconds(timeout, "timeout", error=CommandError)
    )


def checked_grace(grace: Any) -> float:
    """Return `grace` in seconds; 0 kills at once."""
    return checks.seconds(grace, "grace", error=CommandError)


def _checked_signal(value: int | str) -> int:
    """Return the signal as a plain number, so that the `repr` of a Command can be evaluated."""
    number: object = value
    if isinstance(value, str):
        name = value.upper()
        found = getattr(signal, name if name.startswith("SIG") else f"SIG{name}", None)
        number = found if isinstance(found, signal.Signals) else None
    if isinstance(number, bool) or not isinstance(number, int):
        raise CommandError(f"stop_signal must be a signal, its number or its name, not {value!r}")
    if number not in _valid_signals():
        raise CommandError(f"stop_signal must be a signal of this system, not {value!r}")
    if number in _PAUSING:
        raise CommandError(
            f"stop_signal {value!r} pauses a program, and the SIGCONT after it would cancel it"
        )
    if number in _UNHANDLED:
        raise CommandError(f"no program can handle {value!r}: use grace=0 to kill it at once")
    return int(number)


@functools.cache
def _valid_signals() -> frozenset[int]:
    """Return the signals of this system; `signal` makes 62 enum members of them at each call."""
    return frozenset(signal.valid_signals())


def current_umask() -> int:
    """Return the umask of this process."""
    try:
        # Its second line. Unbuffered, because Python asks a buffered file for more than it reads.
        with open("/proc/self/status", "rb", buffering=0) as file:
            for line in file.read(256).splitlines():
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass  # no /proc
    # os.umask can read it only by setting it. Other threads get a strict one meanwhile.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _checked_text(value: object, what: str) -> str:
    """Return the text from which `encode` makes the word's bytes: surrogates for invalid UTF-8."""
    if type(value) is str and value.isascii() and "\0" not in value:
        return value  # the same bytes in every encoding of a file system
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise CommandError(f"{what} must be text, not {type(value).__name__}")
    try:
        raw = os.fsencode(value)
    except UnicodeEncodeError:
        raw = None
    # Outside the handler: the cause would hold the value, which may be a secret.
    if raw is None:
        raise CommandError(f"{what} contains a character that cannot be encoded")
    if b"\0" in raw:
        raise CommandError(f"{what} contains a NUL byte, which no program can be given")
    return raw.decode("utf-8", "surrogateescape")


def _absolute(path: str, what: str) -> str:
    try:
        return os.path.abspath(encode(path)).decode("utf-8", "surrogateescape")
    except FileNotFoundError as error:
        raise CommandError(
            f"{what} cannot be made absolute: the current directory was removed"
        ) from error


def _checked_argv(argv: object, *, shell: bool) -> tuple[str, ...]:
    if shell:
        if isinstance(argv, tuple) and len(argv) == 1:
            (argv,) = argv  # the stored form, which `dataclasses.replace` passes again
        if not isinstance(argv, str) or not argv.strip():
            raise CommandError("with shell=True, argv must be one string, not empty")
        return (_checked_text(argv, "the shell command"),)
    # Lists and tuples first here and below: to ask an abstract class takes ten times as long.
    if not isinstance(argv, (list, tuple)) and isinstance(argv, (str, bytes, os.PathLike)):
        raise CommandError(
            f"argv must be a list of words, not one {type(argv).__name__}: "
            'write ["program", "argument"], or Command(..., shell=True) to have a shell split it'
        )
    if not isinstance(argv, (list, tuple, Sequence)):
        raise CommandError(f"argv must be a list of words, not {type(argv).__name__}")
    if not argv:
        raise CommandError("argv is empty: there is no program to run")
    words = tuple(_checked_text(word, f"argv[{index}]") for index, word in enumerate(argv))
    if not words[0]:
        raise CommandError("argv[0] is empty: there is no program to run")
    return words


def _checked_cwd(cwd: object) -> str:
    # Absolute now: the manager that starts the job may have another current directory.
    text = _checked_text("" if cwd is None else cwd, "cwd")
    if cwd is not None and not text:
        raise CommandError("cwd is empty")
    return _absolute(text, "cwd")


def _checked_env(env: object) -> dict[str, str]:
    if not isinstance(env, (dict, Mapping)):
        raise CommandError(f"env must be a mapping, not {type(env).__name__}")
    checked = {}
    for name, value in env.items():
        # No message shows the value, because it is often a secret.
        name_text = _checked_text(name, "the name of a variable in env")
        if not name_text or "=" in name_text:
            # If the name is given as KEY=VALUE, do not show the value.
            shown = name_text.partition("=")[0]
            raise CommandError(f"a name in env must not be empty or contain '=': {shown!r}")
        checked[name_text] = _checked_text(value, f"env[{name_text!r}]")
    return checked


def _checked_stdin(stdin: object) -> bytes | str | None:
    if stdin is None or isinstance(stdin, bytes):
        return stdin
    path = _checked_text(stdin, "stdin")
    if not path:
        raise CommandError("stdin is an empty path; bytes would be the input itself")
    return _absolute(path, "stdin")


def _checked_stdout_to(path: object) -> str | None:
    if path is None:
        return None
    text = _checked_text(path, "stdout_to")
    if not text:
        raise CommandError("stdout_to is an empty path")
    return _absolute(text, "stdout_to")


def _checked_redact(redact: object) -> tuple[str, ...]:
    if isinstance(redact, (str, bytes)) or not isinstance(redact, (list, tuple, Sequence)):
        raise CommandError("redact must be a list of values")
    values = tuple(_checked_text(value, "a value in redact") for value in redact)
    if not all(values):
        raise CommandError("an empty value in redact would mask everything")
    return values
