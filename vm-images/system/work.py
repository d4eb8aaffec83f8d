"""Runs in the Debian guest: fills Redis with more than there is memory, and has it say its digest, twice.

One process with one connection to Redis; it talks over the console like the small guest's work, and goes on
to the next step when a line `go` comes.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time

import records

SEED, CHANGED_SEED, MIB = 1, 2, 1 << 20
BATCH = 64


def say(kind, **fields):
    """One line for whoever listens."""
    print(f"GUEST-{kind}", *(f"{name}={value}" for name, value in fields.items()), flush=True)


def parameter(name, default):
    """A tide.NAME= of the kernel's command line."""
    words = pathlib.Path("/proc/cmdline").read_text().split()
    return int(dict(word.split("=", 1) for word in words if "=" in word).get(f"tide.{name}", default))


def kernel_numbers(path, *names):
    """Figures of a file of /proc with a name and a number on each line."""
    lines = (line.replace(":", " ").split() for line in pathlib.Path(path).read_text().splitlines())
    found = {line[0]: int(line[1]) for line in lines if line}
    return [found[name] for name in names]


def say_progress(phase):
    """What the guest's kernel has swapped so far."""
    pswpin, pswpout = kernel_numbers("/proc/vmstat", "pswpin", "pswpout")
    total, free = kernel_numbers("/proc/meminfo", "SwapTotal", "SwapFree")
    say("PROGRESS", wrong=0, pswpin=pswpin, pswpout=pswpout, swapped_kib=total - free, phase=phase)


class Redis:
    """A connection to the server of this guest."""

    def __init__(self):
        self._socket = socket.create_connection(("127.0.0.1", 6379))
        self._answers = self._socket.makefile("rb")

    def ask(self, *commands):
        """Send commands at once; the first line of each answer.  Ends the process if Redis refuses one."""
        self._socket.sendall(b"".join(self._packed(words) for words in commands))
        answers = [self._answers.readline().rstrip() for _ in commands]
        for answer in answers:
            if answer.startswith(b"-"):
                say("ERROR", redis=answer.decode().replace(" ", "_"))
                sys.exit(1)
        return answers

    @staticmethod
    def _packed(words):
        parts = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        return b"*%d\r\n%s" % (len(words), parts)


def write(redis, seed, total_bytes):
    """Put the seed's records into Redis, telling how far it is."""
    batch, told = [], time.monotonic()
    for key, value in records.records(seed, total_bytes):
        batch.append((b"SET", key, value))
        if len(batch) == BATCH:
            redis.ask(*batch)
            batch.clear()
        if time.monotonic() > told + 1:
            told = time.monotonic()
            say_progress("write")
    if batch:
        redis.ask(*batch)


def say_digest(redis, step):
    """Has Redis read all that it holds."""
    begun = time.monotonic()
    (answer,) = redis.ask((b"DEBUG", b"DIGEST"))
    say_progress("digest")
    say("DIGEST", step=step, value=answer.decode().lstrip("+"), ms=int((time.monotonic() - begun) * 1000))


def await_go():
    """Wait for the line that lets us go on."""
    while "go" not in sys.stdin.readline():
        pass


def say_swap():
    """The swap area that systemd has switched on, by what fstab says."""
    device, _, kib = pathlib.Path("/proc/swaps").read_text().splitlines()[1].split()[:3]
    queue = pathlib.Path("/sys/block", pathlib.Path(device).name, "queue")
    rotational = (queue / "rotational").read_text().strip()
    label = subprocess.run(
        ["blkid", "-o", "value", "-s", "LABEL", device], capture_output=True, text=True
    ).stdout.strip()
    say("SWAP", device=device, label=label, rotational=rotational, kib=kib)


def main():
    """Write, digest, change a part, digest, give all of it up, switch off."""
    say("READY", kernel=os.uname().release, uptime=pathlib.Path("/proc/uptime").read_text().split()[0])
    say_swap()
    redis, mib = Redis(), parameter("mib", 64)
    write(redis, SEED, mib * MIB)
    say_progress("written")
    await_go()
    say_digest(redis, "written")
    await_go()
    write(redis, CHANGED_SEED, mib * MIB // 2)
    await_go()
    say_digest(redis, "changed")
    redis.ask((b"FLUSHALL",))
    redis.ask((b"MEMORY", b"PURGE"))
    say_progress("given-up")
    await_go()
    pswpin, pswpout = kernel_numbers("/proc/vmstat", "pswpin", "pswpout")
    say("RESULT", wrong=0, pswpin=pswpin, pswpout=pswpout)
    subprocess.run(["systemctl", "poweroff"], check=True)


if __name__ == "__main__":
    main()
