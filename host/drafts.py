"""A file that is there whole or not at all, whoever is killed meanwhile.

Nameless until it is complete (O_TMPFILE, open(2)), so that nothing has to be cleared away.  Where the file
system has no nameless files it has a hidden name, which a killed process leaves behind.
"""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

# What open(2) says where there are none: the file system's, or a kernel's that takes it for a directory.
_NONE_HERE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


@contextlib.contextmanager
def becoming(path: pathlib.Path) -> Iterator[int]:
    """A descriptor to write to, closed at the end; then the file is at `path`, in place of any other.

    Only its user may read it.  Raises OSError where it cannot be made; after any error there is nothing.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}.new")
    fd, named = _open(path, hidden)
    try:
        yield fd
        if not named:
            # Given a directory, though it does without, Python calls linkat(2), which can follow this link.
            os.link(f"/proc/self/fd/{fd}", hidden, src_dir_fd=fd, follow_symlinks=True)
            named = True
        hidden.rename(path)
    except BaseException:
        if named:
            hidden.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _open(path: pathlib.Path, hidden: pathlib.Path) -> tuple[int, bool]:
    """The second value says whether it has its hidden name."""
    try:
        return os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600), False
    except OSError as error:
        if error.errno not in _NONE_HERE:
            raise
    return os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), True
