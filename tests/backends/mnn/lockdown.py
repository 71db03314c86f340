"""Takes from this process the right to open sockets and to start processes, below Python.

A seccomp filter of the kernel kills it (SIGSYS) at socket, connect, fork, vfork, exec, and at
every clone that does not make a thread. clone3 hides its flags from a filter: it is answered with
"not implemented", and the C library falls back on clone.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

CALLS = {
    "x86_64": {
        "arch": 0xC000003E,
        "forbidden": [41, 42, 53, 57, 58, 59, 322],  # socket connect socketpair (v)fork execve(at)
        "clone": 56,
    },
    "aarch64": {"arch": 0xC00000B7, "forbidden": [198, 199, 203, 221, 281], "clone": 220},
}
"""Numbers of linux/asm/unistd.h; aarch64 has no fork of its own."""

CLONE3 = 435
CLONE_THREAD = 0x10000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_KILL, _ALLOW, _FAIL = 0x80000000, 0x7FFF0000, 0x00050000 | errno.ENOSYS
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("code", ctypes.c_void_p))


def lock_down() -> bool:
    """From here on, for this process and its threads, for good; False where the kernel cannot."""
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return False
    calls = CALLS[platform.machine()]
    program = [(_LOAD, 0, 0, _ARCH), (_JUMP_IF_EQUAL, 1, 0, calls["arch"]), (_RETURN, 0, 0, _KILL)]
    program.append((_LOAD, 0, 0, _NUMBER))
    for number in calls["forbidden"]:
        program += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _KILL)]
    program += [(_JUMP_IF_EQUAL, 0, 1, CLONE3), (_RETURN, 0, 0, _FAIL)]
    program += [(_JUMP_IF_EQUAL, 0, 3, calls["clone"]), (_LOAD, 0, 0, _ARGUMENT)]
    program += [(_JUMP_IF_SET, 1, 0, CLONE_THREAD), (_RETURN, 0, 0, _KILL), (_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filtered = _Program(len(program), ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None).prctl
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(prctl(_SECCOMP, _FILTER, ctypes.byref(filtered), 0, 0) == 0)
