"""Types of the inotify calls; see inotify.pyx."""

from _typeshed import StrOrBytesPath

def watch_modify(path: StrOrBytesPath) -> int: ...
