"""The control socket under lines that no command of ours would send: a failure or a closed connection.

The daemon lives, a disk that was there serves on, and whoever speaks the protocol is answered meanwhile.
"""

import contextlib
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from swaptide.cache import geometry, layout
from tests.real import daemons

ANSWER_SECONDS = 60.0
FUZZ_SECONDS = float(os.environ.get("SWAPTIDE_FUZZ_SECONDS") or 60)
TAGS = (
    *("disk-add", "disk-ls", "disk-show", "disk-set", "disk-clear", "disk-restart", "disk-rm"),
    *("guest-add", "guest-ls", "guest-rm", "attach", "detach", "result", ""),
)


class Victim:
    """A daemon with one disk, g1, whose process has to stay the same."""

    def __init__(self, daemon: daemons.Daemon) -> None:
        self.daemon = daemon
        self.disk = daemon.add()

    def dial(self) -> socket.socket:
        """A connection to the control socket."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.connect(str(self.daemon.run_dir / "control.sock"))  # waits where the queue is full
        made.settimeout(ANSWER_SECONDS)
        return made

    def say(self, line: bytes, *, end: bool = False) -> list[Any]:
        """Send `line`, nothing after it where `end`; every line of the answer, decoded."""
        with self.dial() as made:
            # A line that is too long is not read to its end.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                made.sendall(line)
                if end:
                    made.shutdown(socket.SHUT_WR)
            return [json.loads(answer) for answer in answer_of(made).splitlines()]

    def judge(self) -> None:
        """The daemon answers, and the disk runs in the process that it had."""
        assert self.daemon.process is not None and self.daemon.process.poll() is None
        (answer,) = self.say(b'{"type":"disk-show","name":"g1"}\n')
        assert answer["type"] == "result", answer
        assert answer["value"]["state"] == "running" and answer["value"]["pid"] == self.disk["pid"]


def answer_of(made: socket.socket) -> bytes:
    """Everything until the daemon closes; a reset is an answer as well."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := made.recv(1 << 20):
            data += more
    return data


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    """One daemon for all attacks; at the end its disk still holds what was written before."""
    with daemons.directory() as root, daemons.serving(root) as running:
        made = Victim(running)
        with daemons.client(made.disk) as handle:
            handle.pwrite(b"before" * 512, 4096)
        yield made
        made.judge()
        with daemons.client(made.disk) as handle:
            assert handle.pread(3072, 4096) == b"before" * 512


EXAMPLES = hypothesis.settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)

NUMBERS = st.one_of(st.integers(), st.sampled_from((1 << 63, 1 << 64, 10**400, -1)), st.floats())
# Not the name of the disk that has to stay.
NAMES = st.one_of(st.text(max_size=80), st.sampled_from(("nope", "../g1", "\0", "g" * 5000, "control")))
NAMES = NAMES.filter(lambda name: name != "g1")
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, NAMES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
WRONG = st.fixed_dictionaries(
    {"type": st.sampled_from(TAGS), "name": st.one_of(NAMES, VALUES.filter(lambda v: v != "g1"))},
    optional={
        # Below every floor: nothing is ever made.
        "size_bytes": st.one_of(VALUES, st.integers(0, 1 << 45)),
        "ram_bytes": st.one_of(VALUES, st.integers(0, 1 << 20)),
        "floor_bytes": VALUES,
        "weight": VALUES,
        "force": VALUES,
        "spill": st.one_of(VALUES, st.sampled_from(("relative", "/proc/self/mem", "/dev/full"))),
        "swap_label": VALUES,
        "encrypt": VALUES,
        "compress": VALUES,
        "clean_ahead_percent": VALUES,
        "deadline_seconds": VALUES,
        "spill_timeout_seconds": VALUES,
        # No guest is ever registered: a relative path, and no disk of such a name.
        "qmp": st.one_of(VALUES, st.sampled_from(("relative", "/no\0thing"))),
        "guest": VALUES,
        "bus": VALUES,
        "disks": VALUES,
        "min_bytes": VALUES,
        "max_bytes": VALUES,
        "clear_on_reset": VALUES,
        "surprise": VALUES,
    },
)
LINES = st.one_of(
    WRONG.map(lambda value: json.dumps(value).encode()),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=300),
)


@EXAMPLES
@hypothesis.given(line=LINES, end=st.booleans())
def test_lines_of_any_shape(victim: Victim, line: bytes, end: bool) -> None:
    judge_line(victim, line, end)


def judge_line(victim: Victim, line: bytes, end: bool) -> None:
    answers = victim.say(line.replace(b"\n", b" ") + (b"" if end else b"\n"), end=end)
    assert not answers or answers[-1]["type"] in ("failure", "result"), answers
    for answer in answers:
        if answer["type"] == "failure":
            assert "internal error" not in answer["message"], (line, answer)
    victim.judge()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"\0" * 1000 + b"\n",
        b"[" * 200_000 + b"\n",
        b'{"a":' * 200_000 + b"\n",
        b'{"type":"disk-ls","x":' + b"[" * 5000 + b"]" * 5000 + b"}\n",
        b"x" * (5 << 20) + b"\n",
        b'{"type":"disk-show","name":"' + b"x" * (5 << 20) + b'"}\n',
        b'{"type":"disk-show","name":"' + b"x" * (3 << 20) + b'"}\n',
        b'{"type":"disk-show","name":"\xff\xfe"}\n',
        b'{"type":"disk-show","name":"nope","name":"nope2"}\n',
        b"9" * 100_000 + b"\n",
        b'{"type":"disk-set","name":"nope","ram_bytes":1e999}\n',
    ],
    ids=lambda line: f"{line[:12]!r}-{len(line)}",
)
def test_long_deep_and_broken_lines(victim: Victim, line: bytes) -> None:
    answers = victim.say(line, end=True)
    assert not answers or answers[-1]["type"] == "failure", answers
    victim.judge()


def test_clients_that_are_silent_or_leave(victim: Victim) -> None:
    """Two hundred connections that say half a line; others are answered, and these are cut off in the end."""
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(victim.dial()) for _ in range(200)]
        for number, made in enumerate(silent):
            made.sendall(b'{"type":"disk-ls"'[: number % 17])
        for _ in range(100):
            with victim.dial() as made:
                made.sendall(b'{"type":"disk-ls"}\n')  # and never look at the answer
        victim.judge()
        begun = time.monotonic()
        assert answer_of(silent[-1]) == b""
        assert time.monotonic() - begun < ANSWER_SECONDS
    victim.judge()


def test_a_state_file_full_of_garbage_is_reported(victim: Victim) -> None:
    """The process that serves a disk is not trusted: what it counts must not stop the reports of others."""
    state = pathlib.Path(victim.disk["state_file"])
    with open(state, "r+b", buffering=0) as file:
        kept = os.pread(file.fileno(), 65536 - 4096, 4096)
        for garbage in (b"\xff" * len(kept), os.urandom(len(kept))):
            # Who owns the file, and the clocks that the log goes by, stay.
            for at in range(4096, 12288 + 5120, 8):
                if not is_vital(at):
                    os.pwrite(file.fileno(), garbage[at - 4096 : at - 4088], at)
            (answer,) = victim.say(b'{"type":"disk-ls"}\n')
            (shown,) = victim.say(b'{"type":"disk-show","name":"g1"}\n')
        for at in range(4096, 12288 + 5120, 8):
            if not is_vital(at):
                os.pwrite(file.fileno(), kept[at - 4096 : at - 4088], at)
    assert answer["type"] == "result" and shown["type"] == "result", (answer, shown)
    victim.judge()


def is_vital(at: int) -> bool:
    """Whether the word there is one that the process itself goes by."""
    vital = ("owner_pid", "serving", "connections", "log_clock", "write_clock")
    words = {geometry.COUNTERS_OFFSET + 8 * layout.COUNTERS.index(name) for name in vital}
    return at in words


@pytest.mark.long
def test_lines_for_as_long_as_asked(victim: Victim) -> None:
    deadline = time.monotonic() + FUZZ_SECONDS

    @hypothesis.settings(EXAMPLES, max_examples=300, derandomize=False)
    @hypothesis.given(line=LINES, end=st.booleans())
    def body(line: bytes, end: bool) -> None:
        judge_line(victim, line, end)

    while time.monotonic() < deadline:
        body()
