"""The key of a disk's spilled pages: in the kernel's keyring, where it outlives our processes.

It never reaches a disk: the kernel keeps it in memory that is not swapped, and the process that uses it
makes no core dump.  One key for each disk, in the keyring of the user that serves it (keyrings(7)).
Calls block for microseconds; any thread may make them.
"""

import ctypes
import functools
import os
import struct
from typing import Final

from swaptide.cache.errors import SetupError

KEY_BYTES: Final = 32
# Behind the key: how often a process has taken the disk over.
_TAKEN: Final = struct.Struct("<Q")
_USER_KEYRING: Final = -4  # KEY_SPEC_USER_KEYRING
_PROCESS_KEYRING: Final = -2  # KEY_SPEC_PROCESS_KEYRING
# The owner may do everything, also from a session that the user's keyring is not linked to, as of a service.
_OWNER_ALL: Final = 0x3F3F0000
_REMEDY: Final = (
    "look at this user's quota in /proc/key-users, or serve the disk without a key by encrypt=no,"
    " if what is below the spill file encrypts"
)


def make(disk_id: str) -> bytearray:
    """Make a disk's key and keep it in the keyring, in place of one of that id.  Raises SetupError."""
    key = bytearray(os.urandom(KEY_BYTES))
    keep(disk_id, key)
    return key


def keep(disk_id: str, kept: bytearray) -> None:
    """Keep a key, or what `read` returned, in this user's keyring, in place of one of that id.

    Raises SetupError.
    """
    library = _library()
    # Only who can reach a key from its own keyrings may open it to the owner, and a service's session has no
    # link to the user's keyring.
    library.keyctl_link(_USER_KEYRING, _PROCESS_KEYRING)
    raw = (ctypes.c_char * len(kept)).from_buffer(kept)
    number = library.add_key(b"user", _name(disk_id), raw, len(kept), _USER_KEYRING)
    if number < 0 or library.keyctl_setperm(number, ctypes.c_uint32(_OWNER_ALL)) < 0:
        raise SetupError(f"the kernel's keyring refuses a key: {_reason()}; {_REMEDY}")


def find(disk_id: str) -> bytearray:
    """A disk's key; raises SetupError where it is gone, for what was spilled cannot be read without."""
    kept = read(disk_id)
    key = kept[:KEY_BYTES]
    wipe(kept)
    return key


def take_over(disk_id: str) -> tuple[bytearray, int]:
    """A disk's key, and a number that no other call for this disk has returned.  Raises SetupError.

    The number is what a state file that was put back from a copy cannot take back.
    """
    kept = read(disk_id)
    key = kept[:KEY_BYTES]
    taken = 1 + (_TAKEN.unpack_from(kept, KEY_BYTES)[0] if len(kept) > KEY_BYTES else 0)
    kept[KEY_BYTES:] = _TAKEN.pack(taken)
    keep(disk_id, kept)
    wipe(kept)
    return key, taken


def read(disk_id: str) -> bytearray:
    """All that the keyring has of a disk, to be kept in another one.  Raises SetupError."""
    number = _search(disk_id)
    room = KEY_BYTES + _TAKEN.size
    kept = bytearray(room)
    raw = (ctypes.c_char * room).from_buffer(kept)
    length = _library().keyctl_read(number, raw, room) if number >= 0 else -1
    del raw
    if length not in (KEY_BYTES, room):
        raise SetupError(
            f"the key of disk {disk_id} is not in the keyring of user {os.geteuid()}: {_reason()};"
            " start as the user that made the disk"
        )
    found = kept[:length]
    wipe(kept)
    return found


def erase(disk_id: str) -> bool:
    """Forget a disk's key: what was spilled under it is garbage from now on.  False: there was none."""
    number = _search(disk_id)
    if number < 0:
        return False
    library = _library()
    # Revoked first: nobody who still holds its number can read it.
    library.keyctl_revoke(number)
    return bool(library.keyctl_unlink(number, _USER_KEYRING) == 0)


def wipe(key: bytearray) -> None:
    """Overwrite a key that is no longer needed in Python."""
    key[:] = bytes(len(key))


def _search(disk_id: str) -> int:
    return int(_library().keyctl_search(_USER_KEYRING, b"user", _name(disk_id), 0))


def _name(disk_id: str) -> bytes:
    return f"swaptide:{disk_id}".encode()


def _reason() -> str:
    return os.strerror(ctypes.get_errno())


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libkeyutils.so.1", use_errno=True)
    except OSError as error:
        raise SetupError(f"{error}; install the Debian package libkeyutils1") from error
    for name in ("read", "setperm", "search", "link", "unlink", "revoke"):
        getattr(library, f"keyctl_{name}").restype = ctypes.c_long
    return library
