"""
Reaps, signals and names the processes of one job, from the main one to the last orphan.

It signals only processes whose pid cannot have been reused: direct children that are not
reaped, the group of the main process while that is not reaped, and others through a handle
that was compared with the tree. The supervisor is a subreaper, so descendants whose parents
die become its children.

While no file descriptor or memory is free, the processes cannot be listed. The functions that
list them raise an `OSError` then, because an empty list would say that none is left.
"""

from __future__ import annotations

import os

from jobcore.supervisor import pids, system_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Container
else:
    import _signal

_OWN_CHILDREN = "/proc/thread-self/children"  # this process has one thread


class ProcessTree:
    """
    The descendants of this process, all of them of one job.

    Args:
        main: The pid of the command.
        others: The pids of children that are no part of the job; those that end are removed.

    Attributes:
        main: The pid of the command.
        status: The command's wait status, undecoded; None until it is reaped.
        left: Whether there are children, as of the last `reap`.
        cpu_us: CPU time of all reaped processes, in microseconds.
        max_rss: The largest resident set among them, in bytes.
    """

    def __init__(self, main: int, others: set[int] | None = None) -> None:
        self.main = main
        self._others: set[int] = set() if others is None else others
        self.status: int | None = None
        self.left = True
        self.cpu_us = 0
        self.max_rss = 0
        self._signalled: set[int] = set()  # pids that got a signal to end
        self._killed: set[int] = set()

    def watch_main(self) -> int:
        """
        Return a pidfd, which becomes readable when the main process ends. The caller closes it.

        Raises:
            OSError: pidfds are not available, or no file descriptor is free.
        """
        return system_calls.open_process(self.main)

    def reap(self) -> bool:
        """Reap every child that has ended; return whether the main one was among them."""
        main_ended = False
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self.left = False
                return main_ended
            if pid == 0:
                self.left = not self._others or self._has_children()
                return main_ended
            if pid in self._others:
                self._others.discard(pid)
                continue
            self.cpu_us += round((usage.ru_utime + usage.ru_stime) * 1_000_000)
            self.max_rss = max(self.max_rss, usage.ru_maxrss * 1024)
            self._signalled.discard(pid)  # the pid may be reused by another process of the job
            if pid == self.main:
                self.status = status
                main_ended = True

    def children(self) -> list[int]:
        """
        Return the pids of the direct children that belong to the job.

        Raises:
            OSError: They cannot be listed now.
        """
        return [pid for pid in children() if pid not in self._others]

    def _descendants(self, *, children_only: bool = False) -> list[Process]:
        return descendants(children_only=children_only, without=self._others)

    def _has_children(self) -> bool:
        try:
            return bool(self.children())
        except OSError:
            return True  # they cannot be listed now: look again later

    def stop(self, number: int, *, group: bool) -> None:
        """
        Send the first signal of a stop, then SIGCONT, because a stopped process cannot react.

        Args:
            number: The signal.
            group: True: signal the group of the main process and all our children. False:
                only the main process, which may need its children to end cleanly.
        """
        try:
            strays = [
                pid for pid in self.children() if pid != self.main and not self._in_group(pid)
            ]
        except OSError:
            strays = []  # `end_rest` and `kill` will reach them: do not delay the others
        if group:
            self._signal_group(number)
            try:
                self._signalled.update(
                    one.pid for one in self._descendants() if self._in_group(one.pid)
                )
            except OSError:
                pass  # then some may get a second signal from `end_rest`
            for pid in strays:
                self._send_signal(pid, number)
        elif self.status is None:
            _signal_child(self.main, number)
        self._signal_group(_signal.SIGCONT)
        for pid in strays:
            _signal_child(pid, _signal.SIGCONT)

    def end_rest(self, *, everyone: bool) -> list[str]:
        """
        Send SIGTERM to the processes other than the main one that have not got it yet.

        Many programs abort at a second signal, so no process gets two.

        Args:
            everyone: True: signal all of them. False: only our direct children, whose parents
                are gone. Each of these can end its own children cleanly; those that it leaves
                become our children.

        Returns:
            The processes that got the signal now, as pid and name.

        Raises:
            OSError: Some could not be examined now, and got no signal yet.
        """
        asked = []
        for one in self._descendants():
            if one.pid == self.main or one.pid in self._signalled or not (one.direct or everyone):
                continue
            if one.direct:
                self._send_signal(one.pid, _signal.SIGTERM)
                _signal_child(one.pid, _signal.SIGCONT)
            elif one.signal(_signal.SIGTERM, _signal.SIGCONT):
                self._signalled.add(one.pid)
            asked.append(str(one))
        return asked

    def shares_cgroup(self) -> bool:
        """
        Tell whether the main process is in this process's cgroup, so in the same service.

        False also if that cannot be checked: a second signal is better than none.
        """
        try:
            if pids.level() != 1:
                return False
            with (
                open("/proc/self/cgroup", "rb") as ours,
                open(f"/proc/{self.main}/cgroup", "rb") as its,
            ):
                return ours.read() == its.read()
        except OSError:
            return False

    def survivors(self) -> list[str]:
        """
        Return all living processes except the main one, as pid and name.

        Raises:
            OSError: They cannot be listed now.
        """
        return [str(one) for one in self._descendants() if one.pid != self.main]

    def kill(self) -> list[str]:
        """
        Send SIGKILL to the group and to every child. Their children then become ours.

        Returns:
            The processes that no earlier call has returned, as pid and name.

        Raises:
            OSError: The processes cannot be listed now, and only the group got the signal.
        """
        # Search the whole tree only once: this must be faster than a process that keeps forking.
        try:
            found = self._descendants(children_only=bool(self._killed))
        finally:
            self._signal_group(_signal.SIGKILL)
        new = [one for one in found if one.pid not in self._killed]
        for pid in self.children():
            _signal_child(pid, _signal.SIGKILL)
        self._killed.update(one.pid for one in new)
        return [str(one) for one in new]

    def _send_signal(self, pid: int, number: int) -> None:
        self._signalled.add(pid)
        _signal_child(pid, number)

    def _in_group(self, pid: int) -> bool:
        # Members of the group have got the signal with the group.
        try:
            return os.getpgid(pid) == self.main
        except ProcessLookupError:
            return True

    def _signal_group(self, number: int) -> None:
        if self.status is not None:
            return
        try:
            os.killpg(self.main, number)
        except ProcessLookupError:
            _signal_child(self.main, number)  # it has not created its own group yet
        except PermissionError:
            pass  # the whole group runs as another user; it is recorded if it does not end


def _signal_child(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended, or changed its user; if it stays, it is recorded as unreaped


class Process:
    """
    A living descendant of this process, as it was a moment ago.

    Attributes:
        pid: Its pid in this process's namespace.
        direct: Whether it is our child. Then its pid is not reused until we reap it.
    """

    __slots__ = ("_entry", "_name", "_parent", "direct", "pid")

    def __init__(self, pid: int, entry: int, parent: int, name: str, *, direct: bool) -> None:
        self.pid = pid
        self.direct = direct
        self._entry = entry
        self._parent = parent
        self._name = name

    def __str__(self) -> str:
        """Return pid and name, as `ps` shows them."""
        return f"{self.pid} ({self._name})"

    def signal(self, *numbers: int) -> bool:
        """
        Send signals, if it is still the same process; False: it is not, or we must not.

        Raises:
            OSError: It cannot be examined now.
        """
        try:
            with pids.ProcessHandle(self._entry) as process:
                # The pid may have been reused before the handle was opened.
                facts = read_stat(self._entry)
                if facts is None or facts[1] != self._parent:
                    return False
                for number in numbers:
                    process.signal(number)
        except OSError as error:
            system_calls.require_no_shortage(error)
            return False
        return True


def descendants(*, children_only: bool = False, without: Container[int] = ()) -> list[Process]:
    """
    Return the living descendants of this process, parents first; without /proc, none.

    Args:
        children_only: Leave out the descendants of its children.
        without: Children to leave out with their descendants.

    Raises:
        OSError: They cannot be listed now.
    """
    try:
        own, level = pids.own_entry(), pids.level()
        table = None if os.path.exists(_OWN_CHILDREN) else by_parent()
    except OSError as error:
        system_calls.require_no_shortage(error)
        return []  # this process is not in /proc
    found: list[Process] = []
    seen = {own}
    parents = [own]
    for parent in parents:  # the list grows during the loop
        for entry in read_entries_below(parent) if table is None else table.get(parent, ()):
            facts = None if entry in seen else read_stat(entry)
            pid = None if facts is None else pids.translate(entry, level)
            seen.add(entry)
            if facts is None or pid is None or (parent == own and pid in without):
                continue
            found.append(Process(pid, entry, facts[1], facts[0], direct=parent == own))
            if not children_only:
                parents.append(entry)
    return found


def entries_below(entry: int, most: int) -> list[int]:
    """
    Return the /proc entries of up to `most` descendants of any process, parents first.

    Raises:
        OSError: They cannot be listed now.
    """
    table = None if os.path.exists(_OWN_CHILDREN) else by_parent()
    found = [entry]
    seen = {entry}
    for parent in found:  # the list grows during the loop
        below = read_entries_below(parent) if table is None else table.get(parent, ())
        new = [one for one in below if one not in seen]
        seen.update(new)
        found += new[: most + 1 - len(found)]
    return found[1:]


def children() -> list[int]:
    """
    Return the pids of the direct children of this process, which has one thread.

    Raises:
        OSError: They cannot be listed now.
    """
    try:
        entries = _read_entries(_OWN_CHILDREN)
    except OSError as error:  # a kernel without CONFIG_PROC_CHILDREN
        system_calls.require_no_shortage(error)
        try:
            entries = by_parent().get(pids.own_entry(), [])
        except OSError as missing:
            system_calls.require_no_shortage(missing)
            entries = []  # this process is not in /proc: only the group can be signalled
    level = pids.level() if entries else 0
    found = [pids.translate(entry, level) for entry in entries]
    return [pid for pid in found if pid is not None]


def read_entries_below(entry: int) -> list[int]:
    """Return the children of all threads of a process."""
    found = []
    try:
        for thread in os.listdir(f"/proc/{entry}/task"):
            found += _read_entries(f"/proc/{entry}/task/{thread}/children")
    except OSError as error:
        # Else it has just ended, so its children become ours.
        system_calls.require_no_shortage(error)
    return found


def _read_entries(path: str) -> list[int]:
    with open(path, "rb", buffering=0) as file:
        return [int(entry) for entry in file.read().split()]


def by_parent() -> dict[int, list[int]]:
    """
    Return the /proc entries of all processes, by the entry of their parent.

    Raises:
        OSError: There is no /proc, or it cannot be read now.
    """
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        # Including zombies, because `children` must return all that are not reaped.
        facts = read_stat(int(name), living=False) if name.isdigit() else None
        if facts is not None:
            found.setdefault(facts[1], []).append(int(name))
    return found


def read_stat(entry: int, *, living: bool = True) -> tuple[str, int] | None:
    """
    Return name and parent of a process; None: it is gone, or a zombie while `living`.

    Raises:
        OSError: It cannot be examined now.
    """
    try:
        with open(f"/proc/{entry}/stat", "rb") as file:
            head, _, rest = file.read().rpartition(b")")
    except OSError as error:
        system_calls.require_no_shortage(error)
        return None
    state, parent = rest.split()[:2]
    if living and state in (b"Z", b"X"):
        return None
    return head.partition(b"(")[2].decode("utf-8", "backslashreplace"), int(parent)
