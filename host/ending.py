"""How the command begins and ends: its exit statuses, its signals, its errors in one line, and its output.

Imports what the command is made of only once it can be interrupted without a word.
"""

import contextlib
import enum
import io
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn

from swaptide.cache import errors

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEBUG: Final = "SWAPTIDE_DEBUG"


class Status(enum.IntEnum):
    """What the exit status says; docs/command.md and swaptide(1) have the same table."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


class _Output(io.FileIO):
    """Standard output.  Once nobody reads it any more, as after `| head`, what is written is dropped."""

    dropped = False

    def write(self, data: Any) -> int:
        if not self.dropped:
            try:
                return super().write(data) or 0
            except BrokenPipeError:
                self.dropped = True
            except OSError as error:
                self.dropped = True  # or the end would fail anew of what is left
                raise OSError(error.errno, error.strerror, "standard output") from error
        return len(data)


def is_read() -> bool:
    """Whether anybody still reads what is printed."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return not (isinstance(raw, _Output) and raw.dropped)


def main() -> NoReturn:
    """The command's entry: run it, and exit with its status."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        _prepare_streams()
        status = _status_of(_run)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    except OSError as error:
        status = _say(one_line(error))
    sys.exit(int(status))


def one_line(error: BaseException) -> str:
    """An error as a line that no terminal stumbles over, and that names the file where the system has one."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        names = (error.filename, error.filename2)
        text = f"{' -> '.join(os.fsdecode(name) for name in names if name is not None)}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    return errors.plain(text)


def _run() -> int:
    from swaptide.host import cli

    return cli.run(sys.argv[1:])


def _status_of(run: Callable[[], int]) -> int:
    try:
        return run()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Status.DONE
    except OSError as error:
        return _say(one_line(error))
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        return _say(_unexpected(error))


def _unexpected(error: Exception) -> str:
    """What nobody foresaw, in the one line that errors have."""
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{pathlib.Path(last.filename).name}:{last.lineno}"
    return errors.plain(
        f"internal error {error!r} at {where}; is the daemon of another version?"
        f" Else report it, with what {DEBUG}=1 adds"
    )


def _say(text: str) -> Status:
    with contextlib.suppress(OSError):  # nobody reads that either
        print(f"swaptide: {text}", file=sys.stderr, flush=True)
    return Status.FAILED


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _prepare_streams() -> None:
    """Have all three, and none that stumbles over a letter or over a reader who left."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # what we open would else be taken for a stream
    os.close(fd)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if _is_our_output(sys.stdout):
        raw = _Output(1, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=sys.stdout.encoding,
            errors="backslashreplace",
            line_buffering=raw.isatty(),
        )


def _is_our_output(stream: Any) -> bool:
    return stream is sys.__stdout__ and isinstance(stream, io.TextIOWrapper) and stream.fileno() == 1
