"""One run of fio: its nbd engine against a server, or direct I/O on a file; and what its JSON says.

The thread that calls waits for fio.  fio runs as one process (--thread), so that ending it ends all of it.
"""

import dataclasses
import json
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any, Final

from bench import measure

# What a run may take beyond its own time before it counts as stuck: connecting, and a last slow request.
PATIENCE_SECONDS: Final = 30.0
PAGE_BYTES: Final = 4096
# The longest that a pass without a time of its own may take.
PASS_SECONDS: Final = 300.0


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What is asked of a disk.  `rw` is fio's word: read, write, randread or randwrite; sizes in bytes.

    `packs` percent of each 4 KiB page that is written are zeroes, the rest is random.
    """

    rw: str
    block_bytes: int
    depth: int
    packs: int = 0

    @property
    def writes(self) -> bool:
        """Whether it changes the disk."""
        return self.rw.endswith("write")


@dataclasses.dataclass(frozen=True)
class Result:
    """What the client saw: how much in how long, and how long single requests took (fio's clat)."""

    requests: int
    transferred_bytes: int
    seconds: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def bytes_per_second(self) -> float:
        """Bytes per second."""
        return self.transferred_bytes / self.seconds


def parse(output: str) -> Result:
    """The result of fio's one job, from its JSON output; raises ContenderError if it failed or did nothing.

    fio writes lines of its own before the JSON.
    """
    try:
        job = json.loads(output[output.index("{") :])["jobs"][0]
    except (ValueError, LookupError):
        raise measure.ContenderError(f"fio said no JSON: {output.strip()[-200:]}") from None
    if job["error"]:
        raise measure.ContenderError(f"fio ended with error {job['error']}")
    side = max((job["read"], job["write"]), key=lambda each: int(each["total_ios"]))
    if not side["total_ios"] or not side["runtime"]:
        raise measure.ContenderError("not a single request was answered")
    return _result(side)


def _result(side: dict[str, Any]) -> Result:
    latency = side["clat_ns"]
    p50, p99, p999 = (latency["percentile"][f"{share:.6f}"] / 1000 for share in (50, 99, 99.9))
    return Result(
        requests=int(side["total_ios"]),
        transferred_bytes=int(side["io_bytes"]),
        seconds=side["runtime"] / 1000,
        p50_us=p50,
        p99_us=p99,
        p999_us=p999,
        max_us=latency["max"] / 1000,
    )


def nbd(
    uri: str,
    pattern: Pattern,
    *,
    size_bytes: int,
    directory: pathlib.Path,
    seconds: float | None = None,
    at_most_seconds: float | None = None,
    prefix: Sequence[str] = (),
) -> Result:
    """Run `pattern` on the first `size_bytes` of an NBD disk.

    With `seconds`, for that long, at random places with replacement; without, once over the whole, every
    block once, for `at_most_seconds`.  `directory` is where fio leaves its files, `prefix` what starts
    it, in a cgroup for example.  Raises ContenderError.
    """
    target = ["--ioengine=nbd", f"--uri={uri}"]
    return _run(target, pattern, size_bytes, directory, seconds, at_most_seconds, prefix)


def direct(
    path: pathlib.Path,
    pattern: Pattern,
    *,
    size_bytes: int,
    directory: pathlib.Path,
    seconds: float | None = None,
) -> Result:
    """The same on a file with direct I/O (libaio), with no server between; raises ContenderError."""
    target = ["--ioengine=libaio", "--direct=1", f"--filename={path}"]
    return _run(target, pattern, size_bytes, directory, seconds, None)


def verify(
    uri: str, *, size_bytes: int, amount_bytes: int, block_bytes: int, directory: pathlib.Path
) -> None:
    """Write `amount_bytes` at random places and read them back; raises ContenderError if a byte is wrong."""
    command = [
        *_options(Pattern("randwrite", block_bytes, 16), size_bytes),
        *("--ioengine=nbd", f"--uri={uri}", f"--io_size={amount_bytes}"),
        *("--verify=crc32c", "--do_verify=1", "--verify_fatal=1"),
    ]
    parse(_execute(command, directory, PASS_SECONDS))


def _run(
    target: list[str],
    pattern: Pattern,
    size_bytes: int,
    directory: pathlib.Path,
    seconds: float | None,
    at_most_seconds: float | None,
    prefix: Sequence[str] = (),
) -> Result:
    command = [*prefix, *_options(pattern, size_bytes), *target]
    limit = seconds or at_most_seconds
    if limit is not None:
        command.append(f"--runtime={round(limit * 1000)}ms")
    if seconds is not None:
        # Without a map of what was visited: keeping it costs the client time, and here the client counts.
        command += ["--time_based", "--norandommap"]
    return parse(_execute(command, directory, (limit or PASS_SECONDS) + PATIENCE_SECONDS))


def _options(pattern: Pattern, size_bytes: int) -> list[str]:
    return [
        *("fio", "--name=bench", "--thread", "--eta=never", "--output-format=json"),
        *(f"--rw={pattern.rw}", f"--bs={pattern.block_bytes}", f"--iodepth={pattern.depth}"),
        *(f"--size={size_bytes}", "--randrepeat=0", "--percentile_list=50:99:99.9"),
        *_contents(pattern),
    ]


def _contents(pattern: Pattern) -> list[str]:
    """What is written: never zero, never the same twice."""
    if pattern.packs:
        share = f"--buffer_compress_percentage={pattern.packs}"
        # By page, or else whole pages of a larger request would be zero.
        return [share, f"--buffer_compress_chunk={PAGE_BYTES}", "--refill_buffers=1"]
    # Random buffers, made once and changed a little for each request: cheaper than --refill_buffers, which
    # would measure the client.
    return ["--scramble_buffers=1"]


def _execute(command: list[str], directory: pathlib.Path, seconds: float) -> str:
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise measure.ContenderError(f"stuck: fio did not end within {seconds:.0f} s") from None
    except FileNotFoundError:
        raise measure.ContenderError("fio is missing (Debian package fio)") from None
    if done.returncode:
        said = (done.stderr.strip() or f"status {done.returncode}").splitlines()[0]
        raise measure.ContenderError(f"fio failed: {said}")
    return done.stdout
