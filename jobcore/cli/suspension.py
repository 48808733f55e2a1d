"""
Ctrl-Z: stops this process only between transactions.

The default action of SIGTSTP stops a process anywhere, even while it holds SQLite's write lock.
Every other process would then wait for `fg`. So the signal is blocked in every thread, and one
thread waits for it and stops the process once no transaction and no connection is open.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from jobcore.embedding.locks import GATE

#: Return context managers in which the process is stopped, such as one that hides a screen.
around: list[Callable[[], AbstractContextManager[None]]] = []


def guard() -> None:
    """
    Let SIGTSTP stop this process only between transactions.

    Call it once, before the first thread is started, because threads inherit the blocked signals.
    """
    # The thread takes no other signal from those that handle it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ignored = signal.getsignal(signal.SIGTSTP) is signal.SIG_IGN
    try:
        if ignored or signal.SIGTSTP in mask:
            return  # where there is no job control
        threading.Thread(target=_serve, name="jobcore-suspension", daemon=True).start()
        mask |= {signal.SIGTSTP, signal.SIGCONT}
    except RuntimeError:
        pass  # the system allows no thread: keep the default action
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve() -> None:
    while True:
        signal.sigwait({signal.SIGTSTP})
        GATE.call_quiesced(_stop)


def _stop() -> None:
    """Stop this process; return once it has been continued."""
    with ExitStack() as stack:
        for one in around:
            stack.enter_context(one())
        # A SIGTSTP discards a pending SIGCONT, so a pending one came later. It continues a stopped
        # process although it is blocked, but it would not continue one that stops after it.
        if signal.SIGCONT in signal.sigpending():
            return
        # Not by SIGSTOP: the kernel ignores a SIGTSTP where no shell could continue the process.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
        signal.raise_signal(signal.SIGTSTP)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
