"""Kernels: an older kernel, a stricter filter or a poorer `/proc`, for a child of a test's own."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

import pytest

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # instructions of the classic BPF machine

#: System calls, by the name that they have in manual pages.
_NUMBERS = {"pidfd_send_signal": 424, "pidfd_open": 434, "close_range": 436}
_P_PIDFD = 3
_MEMFD_CREATE = {"x86_64": 319, "aarch64": 279, "riscv64": 279}
_WAITID = {"x86_64": 247, "aarch64": 95, "riscv64": 95}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid(*calls, error=errno.ENOSYS):
    """Have system calls fail in this process and in all that come from it; there is no way back."""
    machine = platform.machine()
    if machine not in _MEMFD_CREATE:
        pytest.skip(f"the numbers of system calls are not known for {machine}")
    numbers = {
        **_NUMBERS,
        "memfd_create": _MEMFD_CREATE[machine],
        "waitid": _WAITID[machine],
    }
    code = [(_LOAD, 0, 0, 0)]  # the number of the call
    for call in calls:
        if call == "waitid by pidfd":
            # Then the low half of its first argument, and the number of the call again.
            code += [(_EQUAL, 0, 3, numbers["waitid"]), (_LOAD, 0, 0, 16)]
            code += [(_EQUAL, 0, 1, _P_PIDFD), (_RETURN, 0, 0, _FAIL | error), (_LOAD, 0, 0, 0)]
        else:
            code += [(_EQUAL, 0, 1, numbers[call]), (_RETURN, 0, 0, _FAIL | error)]
    code.append((_RETURN, 0, 0, _ALLOW))
    data = b"".join(struct.pack("HBBI", *one) for one in code)
    program = _Program(len(code), data)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _LIBC.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program), 0, 0) != 0:
        pytest.skip(f"no filter of system calls here: {os.strerror(ctypes.get_errno())}")
