"""The script that nbdkit loads: `nbdkit python plugin.py size=1G ram=256M`.

nbdkit runs it as `__main__`, in an interpreter that knows nothing of the environment swaptide is
installed in.  So it finds the package from its own place and re-exports the callbacks; all state is
in the package, since this module would be a second copy of it.
"""

import pathlib
import sys

_HERE = pathlib.Path(__file__).absolute()
# Installed (or linked from src/): …/swaptide/nbdkit_plugin/plugin.py.
# In a checkout: …/nbdkit_plugin/plugin.py.
for _root in (_HERE.parents[2], _HERE.parents[1] / "src"):
    if (_root / "swaptide" / "nbdkit_plugin").is_dir():
        sys.path.insert(0, str(_root))
        break

# asyncio takes TLS where it is there, and nothing here speaks it: 1.5 MiB of each disk's process.
sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]

from swaptide.nbdkit_plugin.callbacks import (  # noqa: E402
    API_VERSION,
    after_fork,
    block_size,
    can_cache,
    can_extents,
    can_fast_zero,
    can_flush,
    can_fua,
    can_multi_conn,
    can_trim,
    can_write,
    can_zero,
    cleanup,
    close,
    config,
    config_complete,
    default_export,
    get_ready,
    get_size,
    is_rotational,
    list_exports,
    open,
    thread_model,
)
from swaptide.nbdkit_plugin.hot import extents, flush, pread, pwrite, trim, zero  # noqa: E402

__all__ = [
    "API_VERSION",
    "after_fork",
    "block_size",
    "can_cache",
    "can_extents",
    "can_fast_zero",
    "can_flush",
    "can_fua",
    "can_multi_conn",
    "can_trim",
    "can_write",
    "can_zero",
    "cleanup",
    "close",
    "config",
    "config_complete",
    "default_export",
    "extents",
    "flush",
    "get_ready",
    "get_size",
    "is_rotational",
    "list_exports",
    "open",
    "pread",
    "pwrite",
    "thread_model",
    "trim",
    "zero",
]
