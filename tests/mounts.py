"""Mounts: file systems of a test's own, which only the child that it runs in can see."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import subprocess
import threading

import pytest

from tests.processes import PATIENCE, Child

_LIBC = ctypes.CDLL(None, use_errno=True)
#: From linux/sched.h: a mount namespace, and the user namespace that allows it without root.
_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000


class NotPermitted(Exception):
    """This kernel, container or user allows no mounts of one's own."""


def in_own_mounts(function, *args, patience=PATIENCE):
    """Return what `function` returns in a child that may mount; skip the test where none may."""
    try:
        return Child(_with_own_mounts, function, args).result(patience)
    except NotPermitted as error:
        pytest.skip(f"no mounts of one's own here: {error}")


def mount_tmpfs(path, size):
    """Mount an empty file system of `size` bytes over a directory."""
    _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", path)


def mount_proc(options):
    """Mount a /proc that shows less, over the one that is there."""
    _run("mount", "-t", "proc", "-o", options, "proc", "/proc")


def mount_file(source, path):
    """Mount a file by itself over another one, as containers do that are given a single file."""
    _run("mount", "--bind", source, path)


def mount_hanging(path, *, killable, held=None):
    """
    Mount a file system that never answers; return a descriptor that ends it when closed.

    `held` is an event that is set once a request was read: no signal ends its process.

    It is FUSE without anybody who serves it. A request that was not read can be given
    up, so SIGKILL ends who made it; one that was read holds its process in the kernel.
    """
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NotPermitted(f"/dev/fuse: {error.strerror}") from error
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    if _LIBC.mount(b"hanging", os.fsencode(path), b"fuse", 0, options.encode()) != 0:
        raise NotPermitted(f"fuse: {os.strerror(ctypes.get_errno())}")
    if not killable:
        threading.Thread(target=_read_requests, args=[device, held], daemon=True).start()
    return device


def _read_requests(device, held):
    unique = struct.unpack_from("<IIQ", os.read(device, 2**20))[2]
    # The answer to the first request: protocol 7.8, whose answer is the shortest.
    header = struct.pack("<IiQ", 16 + 24, 0, unique)
    os.write(device, header + struct.pack("<IIIIHHI", 7, 8, 0, 0, 0, 0, 4096))
    with contextlib.suppress(OSError):  # it was closed
        while True:
            os.read(device, 2**20)
            if held is not None:
                held.set()


def unmount(path):
    """Take away what is mounted there."""
    _run("umount", path)


def remount(path, how):
    """Make what is mounted there `ro` or `rw`."""
    _run("mount", "-o", f"remount,{how}", path)


def _with_own_mounts(function, args):
    user, group = os.geteuid(), os.getegid()
    flags = _NEW_MOUNTS | (0 if user == 0 else _NEW_USER)
    if _LIBC.unshare(flags) != 0:
        raise NotPermitted(os.strerror(ctypes.get_errno()))
    if user != 0:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    _run("mount", "--make-rprivate", "/")  # or the machine would see what is mounted here
    return function(*args)


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotPermitted(done.stderr.strip())
