"""Tells which pages of this guest's memory are anonymous: what a guest under pressure swaps.  One thread.

Prints a bitmap over page frame numbers (bit n of the bitmap, least significant first, is frame n),
compressed and in base64, as GUEST-PAGES lines, and GUEST-SETTLED with the kernel's own figures in KiB.
"""

import array
import base64
import os
import pathlib
import zlib

ANONYMOUS = 1 << 12  # KPF_ANON
READ_BYTES = 1 << 16
LINE_CHARACTERS = 160


def bitmap(frames: "array.array[int]") -> bytes:
    """One bit for each frame."""
    bits = bytearray(-(-len(frames) // 8))
    for frame, each in enumerate(frames):
        if each & ANONYMOUS:
            bits[frame >> 3] |= 1 << (frame & 7)
    return bytes(bits)


def flags() -> "array.array[int]":
    """The flags of every page frame; the kernel insists on reads of whole entries."""
    found = array.array("Q")
    fd = os.open("/proc/kpageflags", os.O_RDONLY)
    while part := os.read(fd, READ_BYTES):
        found.frombytes(part)
    os.close(fd)
    return found


def main() -> None:
    """Read the flags of all frames and print."""
    text = base64.b64encode(zlib.compress(bitmap(flags()))).decode()
    for start in range(0, len(text), LINE_CHARACTERS):
        print(f"GUEST-PAGES {text[start : start + LINE_CHARACTERS]}")
    figures = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    names = ("MemTotal", "MemFree", "AnonPages", "Cached", "Shmem", "Slab")
    shown = " ".join(f"{name.lower()}={figures[name].split()[0]}" for name in names)
    print(f"GUEST-SETTLED {shown}", flush=True)


if __name__ == "__main__":
    main()
