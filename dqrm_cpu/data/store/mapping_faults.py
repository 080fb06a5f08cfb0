"""What happens when a mapped file can no longer be read: a message that names it, instead of a death without a word.

The system tells a process of a file that was cut short under its mapping, or of a disk that fails below it, by the
signal SIGBUS, in whichever thread touches the page: perhaps one of OpenMP, while another holds the interpreter. The
handler is therefore compiled and asks only the system: it looks the address up in /proc/self/maps, writes the name of
the file that is mapped there to standard error, and ends the process with status 1. Any other SIGBUS ends it as usual.
"""

import ctypes
import functools
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc as numba_cfunc
from numba.core import types as numba_types

from dqrm_cpu.kernels.jit.compile import Kernel, serial
from dqrm_cpu.kernels.jit.memory import carray, pointer

_STATUS = 1
_LONGEST_NAME = 4096
_READ_BYTES = 4096
_DEFAULT = 0  # SIG_DFL
_SIGINFO = 4  # SA_SIGINFO
_MASK_BYTES = 128

types: Any = numba_types
cfunc: Callable[..., Callable[[Kernel], Any]] = numba_cfunc

_open = types.ExternalFunction("open", types.int32(types.voidptr, types.int32))
_read = types.ExternalFunction("read", types.int64(types.int32, types.voidptr, types.int64))
_write = types.ExternalFunction("write", types.int64(types.int32, types.voidptr, types.int64))
_exit = types.ExternalFunction("_exit", types.void(types.int32))
_signal = types.ExternalFunction("signal", types.int64(types.int32, types.int64))
_raise = types.ExternalFunction("raise", types.int32(types.int32))

_MAPS = np.frombuffer(b"/proc/self/maps\0", np.uint8)
_BEFORE = np.frombuffer(b"dqrm-cpu: error: ", np.uint8)
_AFTER = np.frombuffer(
    b" can no longer be read: it was cut short while it was in use, or its disk failed; copy it again from where it is "
    b"whole (of prepared data, dqrm-cpu data verify says so), then start again or go on by --resume auto\n",
    np.uint8,
)


class _Action(ctypes.Structure):
    """The structure sigaction of 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * _MASK_BYTES),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def name_unreadable_files() -> None:
    """Makes this process say which mapped file it can no longer read; a handler of somebody else stays."""
    sigaction = ctypes.CDLL(None, use_errno=True).sigaction
    present = _Action()
    if sigaction(signal.SIGBUS, None, ctypes.byref(present)) == 0 and not present.handler:
        action = _Action(_compiled_handler().address, (ctypes.c_ubyte * _MASK_BYTES)(), _SIGINFO, None)
        sigaction(signal.SIGBUS, ctypes.byref(action), None)


@functools.cache
def _compiled_handler() -> Any:
    """Compiles the handler, which lives as long as the process."""
    return cfunc(types.void(types.int32, types.voidptr, types.voidptr), nopython=True, cache=True)(_handle)


def _handle(number: int, info: Any, context: Any) -> None:
    """Handles the signal: `info` is a siginfo_t, with the signal's code at byte 8 and the address at byte 16."""
    code, address = carray(info, 3, np.int32)[2], carray(info, 3, np.uint64)[2]
    message = np.empty(_BEFORE.size + _LONGEST_NAME + _AFTER.size, np.uint8)
    name = message[_BEFORE.size : _BEFORE.size + _LONGEST_NAME]
    size = _mapped_name(address, name) if code > 0 else 0  # 0 and less: another process sent it
    if size == 0:
        _signal(np.int32(number), np.int64(_DEFAULT))
        _raise(np.int32(number))
        return
    after = _BEFORE.size + size
    message[: _BEFORE.size] = _BEFORE
    message[after : after + _AFTER.size] = _AFTER
    _write(np.int32(2), pointer(np.int64(message.ctypes.data)), np.int64(after + _AFTER.size))
    _exit(np.int32(_STATUS))


@serial
def _mapped_name(address: Any, name: Any) -> int:
    """Writes the name of the file mapped at an address into `name` uint8[n]; returns its length, or 0 for none.

    A line of the maps reads START-END PERMISSIONS OFFSET DEVICE INODE NAME, numbers in hexadecimal digits; only a name
    has a slash.
    """
    descriptor = _open(pointer(np.int64(_MAPS.ctypes.data)), np.int32(0))
    buffer = np.empty(_READ_BYTES, np.uint8)
    bounds = np.zeros(2, np.uint64)
    field, size = 0, 0  # field: 0 start, 1 end, 2 what follows, 3 the name
    while True:
        count = _read(descriptor, pointer(np.int64(buffer.ctypes.data)), np.int64(_READ_BYTES))
        if count <= 0:
            return 0
        for k in range(count):
            byte = buffer[k]
            if byte == 10:
                if size > 0:
                    return size
                field = 0
                bounds[:] = 0
            elif field < 2:
                if byte == 45 or byte == 32:
                    field += 1
                else:
                    digit = np.uint64(byte - 48) if byte < 58 else np.uint64(byte - 87)
                    bounds[field] = bounds[field] * np.uint64(16) + digit
            elif byte == 47 or field == 3:
                field = 3
                if bounds[0] <= address and address < bounds[1] and size < name.size:
                    name[size] = byte if byte >= 32 and byte != 127 else 63
                    size += 1
