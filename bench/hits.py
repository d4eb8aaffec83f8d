"""Hits, side by side with nbdkit's memory plugin: `.venv/bin/python bench/hits.py --rounds N --seconds S`.

fio's nbd engine, both servers alive at once, taking turns; medians over the rounds and the ratio of each
round's pair.  swaptide gets RAM for the whole disk, so that nothing is spilled.
"""

import argparse
import contextlib
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "src" / "swaptide" / "nbdkit_plugin" / "plugin.py"
SIZE = "512M"
# (fio's rw, block size, depth)
WORK = (("randread", "4k", 16), ("randwrite", "4k", 16), ("read", "32k", 8), ("write", "128k", 8))


@contextlib.contextmanager
def server(directory: pathlib.Path, name: str, *plugin: str) -> Iterator[str]:
    """A running nbdkit; yields its URI, and ends it by its pid."""
    socket = directory / f"{name}.sock"
    with open(directory / f"{name}.log", "wb") as log:
        process = subprocess.Popen(["nbdkit", "-f", "-U", str(socket), *plugin], stdout=log, stderr=log)
    try:
        for _ in range(200):
            if socket.exists() and subprocess.run(
                ["nbdinfo", f"nbd+unix:///?socket={socket}"], capture_output=True
            ):
                break
            time.sleep(0.05)
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def fio(uri: str, rw: str, block: str, depth: int, seconds: float, directory: pathlib.Path) -> float:
    """Requests per second; `seconds` of 0 means once over the whole disk."""
    command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", f"--rw={rw}", f"--bs={block}"]
    command += [
        f"--iodepth={depth}",
        f"--size={SIZE}",
        "--output-format=json",
        "--randrepeat=0",
        "--norandommap",
    ]
    # Buffers that fio fills once and changes a little: the client must not be what is measured.
    command += ["--scramble_buffers=1"]
    if seconds:
        command += ["--time_based", f"--runtime={seconds}"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return float(job["read"]["iops"] + job["write"]["iops"])


def main() -> None:
    """Run all rounds and print one row for each kind of work, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        swaptide = ("python", str(PLUGIN), f"size={SIZE}", "ram=1200M")
        with (
            server(directory, "memory", "memory", SIZE) as memory,
            server(directory, "again", "memory", SIZE) as again,
            server(directory, "swaptide", *swaptide) as ours,
        ):
            contenders = {"nbdkit memory": memory, "nbdkit memory again": again, "swaptide": ours}
            for uri in contenders.values():
                fio(uri, "write", "128k", 8, 0, directory)
            host = f"{platform.machine()}, Linux {platform.release()}"
            print(f"{host}, {version('nbdkit')}, {version('fio')}, -t 16")
            print("| work | " + " | ".join(contenders) + " | noise floor | swaptide / memory |")
            print("|---|" + "---|" * (len(contenders) + 2))
            for rw, block, depth in WORK:
                rates: dict[str, list[float]] = {name: [] for name in contenders}
                for _ in range(options.rounds):
                    for name, uri in contenders.items():
                        rates[name].append(fio(uri, rw, block, depth, options.seconds, directory))
                print(row(f"{rw} {block} depth {depth}", rates), flush=True)


def row(work: str, rates: dict[str, list[float]]) -> str:
    """Medians, and the median of the ratios of each round with their least and greatest."""
    first, second, ours = rates.values()
    medians = " | ".join(f"{statistics.median(values) / 1000:.1f} k/s" for values in rates.values())
    return f"| {work} | {medians} | {spread(second, first)} | {spread(ours, first)} |"


def spread(ours: list[float], theirs: list[float]) -> str:
    """Median (least to greatest) of the ratios, round by round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def version(tool: str) -> str:
    """What the tool says of itself, first line."""
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
