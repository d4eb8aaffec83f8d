"""Command lines for a whole tree of commands: for every parameter what fits, and what nobody should give.

A parameter's kind is what stands for its value in the help, so that new commands need nothing here unless
they take something of a new kind.
"""

import contextlib
import dataclasses
import os
import pathlib
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence

import click

# None of these is a size, a time or a number, so that the command line alone makes no sense: status 2.
_NO_NUMBER = ("", " ", "-1", "nan", "inf", "-inf", "1e3", "0x10", "1,5", "9" * 300, "1\n2", "much", "%s", "-")
_NO_SIZE = (
    *_NO_NUMBER,
    "٤",
    "0",
    "0G",
    "-4G",
    "4Q",
    "4GG",
    "4 5G",
    "1.5G",
    "18446744073709551616",
    "99999T",
    "4ＧB",
)
_NO_TIME = (*_NO_NUMBER, "5", "0s", "-2s", "2 weeks", "25h", "1e3s", "nans", "999999999h", "2ss")
# Some of these may be taken: what counts is that nothing breaks, and that a refusal names them.
_TEXTS = (
    "",
    " ",
    "/",
    ".",
    "..",
    "a/b",
    "../../etc/passwd",
    "-",
    "--",
    "-rf",
    "two\nlines",
    "\x1b[2J\x07",
    "n" * 300,
    "n" * 100_000,
    "ünïcode-名前",
    "\u202egnal",
    "\udcff",
    "%s%n{}",
    "$(id);`id`",
    "'\"\\",
    "nul\\0",
    "*",
)
_PATHS = (
    *_TEXTS,
    "/no/such/place/x",
    "/dev/null/x",
    "/" + "d/" * 3000,
    "/no/such/" + "x" * 120,
    "/proc/self/nope",
)
NO_NUMBERS: Mapping[str, Sequence[str]] = {
    "SIZE": _NO_SIZE,
    "TIME": _NO_TIME,
    "PERCENT": (*_NO_NUMBER, "101", "-5%", "5%%", "half"),
    "N": (*_NO_NUMBER, "99999999999999999999"),
    "one of": ("", "nope", "LZ4 ", "n" * 300, "two\nlines"),
    "NAME=NUMBER": ("", "=", "x=", "floor=much", "=nan much", "n" * 300),
}
_FITS: Mapping[str, str] = {
    "NAME": "g1",
    "DISK": "g1",
    "SIZE": "32M",
    "TIME": "500ms",
    "PERCENT": "20",
    "N": "2",
    "ID": "1a2b3c4d",
    "SOCKET": "no.sock",
    "TRACE": "trace",
    "FILE": "file",
}
_NEW: Mapping[tuple[str, ...], str] = {("disk", "add"): "g2", ("guest", "add"): "vm2"}
# What makes a command end soon, or not begin what has tests of its own.
_MORE: Mapping[tuple[str, ...], Mapping[str, str]] = {
    ("serve",): {"--show-config": ""},
    ("top",): {"--once": "", "--interval": "100ms"},
    ("reserve",): {"--hold": "100ms", "--deadline": "100ms", "SIZE": "1M"},
    ("attach",): {"--qmp": "no.sock", "--deadline": "500ms"},
    ("detach",): {"--qmp": "no.sock", "--deadline": "500ms"},
    ("simulate",): {"--make": "eater"},
    ("disk", "set"): {"--weight": "3"},
    ("migrate",): {"--to": "unix:/no/such.sock", "--qmp": "no.sock", "--qemu-uri": "unix:no.qemu"},
    ("receive",): {"--listen": "tcp:127.0.0.1:0"},
}
# What does not go together with the parameter that is wrong.
_WITHOUT: Mapping[str, set[str]] = {
    "--guest": {"--qmp"},
    "--release": {"--hold", "--deadline", "SIZE"},
    "--plot": {"--make"},
    "--every": {"--make"},
    "--reserve": {"--make"},
    "--speed": {"--make"},
    "--set": {"--make"},
}


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line with one value that is wrong; `must_fail` if nobody could make sense of it."""

    path: tuple[str, ...]
    words: tuple[str, ...]
    parameter: str
    value: str
    must_fail: bool


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command of the tree, by its words."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def kind(parameter: click.Parameter) -> str:
    """What stands for its value; `flag` if it takes none."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return "flag"
    if isinstance(parameter.type, click.Choice):
        return "one of"
    if isinstance(parameter.type, click.types.IntParamType) and parameter.metavar is None:
        return "N"
    if isinstance(parameter.type, click.Path):
        return "FILE"
    return (parameter.metavar or (parameter.name or "").upper()).strip("[].")


def label(parameter: click.Parameter) -> str:
    """How a refusal may call it."""
    return parameter.opts[0] if isinstance(parameter, click.Option) else kind(parameter)


def fitting(path: tuple[str, ...], parameter: click.Parameter) -> str:
    """A value that the command takes; fails for a kind that nobody has thought of."""
    if path in _NEW and isinstance(parameter, click.Argument):
        return _NEW[path]
    return _FITS[kind(parameter)]


def hostile(parameter: click.Parameter, places: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Values for a parameter, and whether each has to be refused."""
    what = kind(parameter)
    if what in NO_NUMBERS:
        yield from ((value, True) for value in NO_NUMBERS[what])
    elif any(word in what for word in ("DIR", "FILE", "PATH", "SOCKET", "TRACE")):
        yield from ((value, False) for value in (*_PATHS, *places))
    elif what != "flag":
        yield from ((value, False) for value in _TEXTS)


def lines(path: tuple[str, ...], command: click.Command, places: Sequence[str]) -> Iterator[Line]:
    """A command with each wrong value of each of its parameters, and so again with --force where it has that.

    `places` are paths of something else.
    """
    forced = [(), *(("--force",) for each in command.params if each.name == "force")]
    for parameter in command.params:
        for value, must_fail in hostile(parameter, places):
            words = _words(path, command, parameter, value)
            for force in forced:
                line = (*path, *force, *words)
                yield Line(path, line, label(parameter), value, must_fail)


def usual(path: tuple[str, ...], command: click.Command) -> tuple[str, ...]:
    """A command with nothing wrong."""
    return (*path, *_words(path, command))


def _words(
    path: tuple[str, ...], command: click.Command, wrong: click.Parameter | None = None, value: str = ""
) -> tuple[str, ...]:
    more = _MORE.get(path, {})
    left_out = set() if wrong is None else {label(wrong), *_WITHOUT.get(label(wrong), ())}
    options: list[str] = []
    arguments: list[str] = []
    for parameter in command.params:
        name = label(parameter)
        if parameter is wrong:
            given = value
        elif name in more and name not in left_out:
            given = more[name]
        elif parameter.required:
            given = fitting(path, parameter)
        else:
            continue
        if isinstance(parameter, click.Argument):
            arguments.append(given)
        else:
            options += [name] if kind(parameter) == "flag" else [name, given]
    return (*options, "--", *arguments)


@contextlib.contextmanager
def places(root: pathlib.Path) -> Iterator[list[str]]:
    """Paths below `root` that are there, and are not what anybody wants: files, links, others' sockets."""
    root.mkdir()
    (root / "empty").touch()
    (root / "binary").write_bytes(bytes(range(256)) * 64)
    (root / "directory").mkdir()
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "fifo")
    (root / "dangling").symlink_to(root / "nowhere")
    with contextlib.ExitStack() as stack:
        for name, greeting in (
            ("chatty", b"SSH-2.0-OpenSSH_9.2\r\n"),
            ("garbage", b"\xff\0" * 999),
            ("rude", b""),
        ):
            (root / name).mkdir()
            stack.enter_context(server(root / name / "control.sock", greeting))
        deaf = stack.enter_context(socket.socket(socket.AF_UNIX))
        deaf.bind(str(root / "deaf.sock"))
        found = [path for path in root.rglob("*") if path.parent == root or path.is_socket()]
        yield sorted(str(path) for path in found)


@contextlib.contextmanager
def server(path: pathlib.Path, greeting: bytes) -> Iterator[None]:
    """Another program's server: greets whoever connects, and hangs up."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(16)

        def serve() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                with client, contextlib.suppress(OSError):
                    client.sendall(greeting)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
