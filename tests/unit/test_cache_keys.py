"""Keys in the kernel's keyring: kept, found and erased from whatever session."""

import os
import subprocess
import sys
import uuid

import pytest

# A session of its own, as systemd gives to each service: the user's keyring is not linked to it.
SERVICE = """
import ctypes, os, sys
library = ctypes.CDLL("libkeyutils.so.1", use_errno=True)
assert library.keyctl_join_session_keyring(None) > 0, os.strerror(ctypes.get_errno())
if os.geteuid() == 0:
    os.setresuid(2130706433, 2130706433, 2130706433)
from swaptide.cache import keys
exec(sys.argv[1])
"""


def service(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", SERVICE, script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become another user")
def test_a_key_outlives_the_session_that_made_it() -> None:
    disk = str(uuid.uuid4())
    made = service(f"print(keys.make({disk!r}).hex())")
    try:
        assert service(f"print(keys.find({disk!r}).hex())") == made
        assert [service(f"print(keys.take_over({disk!r})[1])") for _ in range(2)] == ["1", "2"]
    finally:
        assert service(f"print(keys.erase({disk!r}), keys.erase({disk!r}))") == "True False"
