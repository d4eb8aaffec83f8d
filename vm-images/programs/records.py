"""Redis commands that fill a store: a JSON record for each installed file, and texts.  One thread."""

import json
import os
import pathlib
import sys

LISTS = pathlib.Path("/var/lib/dpkg/info")
TEXTS = (os.path.dirname(os.__file__), "/usr/include", "/usr/share/perl")
SUFFIXES = (".py", ".h", ".pm")
TEXT_BYTES = 90_000_000
PIECE_BYTES = 6_000


def put(key: str, value: bytes) -> None:
    """One command in Redis's own protocol."""
    words = (b"SET", key.encode(), value)
    parts = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
    sys.stdout.buffer.write(b"*%d\r\n%s" % (len(words), parts))


def put_records() -> None:
    """What is known of each file."""
    for listing in sorted(LISTS.glob("*.list")):
        for name in listing.read_text().splitlines():
            if not os.path.lexists(name):
                continue
            facts = os.lstat(name)
            record = {
                "package": listing.stem,
                "path": name,
                "size": facts.st_size,
                "mode": oct(facts.st_mode),
            }
            record |= {"modified": facts.st_mtime, "parts": name.split("/")[1:]}
            put(f"file:{listing.stem}:{name}", json.dumps(record).encode())


def put_texts() -> None:
    """Sources and headers, cut into pieces, until there are enough."""
    left = TEXT_BYTES
    for directory in TEXTS:
        for path in sorted(pathlib.Path(directory).rglob("*")):
            if path.suffix not in SUFFIXES or not path.is_file() or left <= 0:
                continue
            content = path.read_bytes()
            left -= len(content)
            for start in range(0, len(content), PIECE_BYTES):
                put(f"text:{path}:{start}", content[start : start + PIECE_BYTES])


if __name__ == "__main__":
    put_records()
    put_texts()
