"""Whoever dies whenever while a store is handed over: one disk has it in the end, with every page right."""

import contextlib
import os
import random
import signal
import time

import pytest

from tests.real import daemons, movers, remotes, test_migrate
from tests.real.test_migrate_store import OVER, adoption, guest, owner, pair, remote

__all__ = ["guest", "pair", "remote"]

SEEDS = [pytest.param(seed, marks=[pytest.mark.long] if seed > 2 else []) for seed in range(24)]
VICTIMS = (
    "here's process",
    "there's process",
    "here's daemon",
    "there's daemon",
    "migrate",
    "receive",
    "store",
)


def strike(pair: movers.Pair, remote: remotes.Remote, victim: str, pids: dict[str, int]) -> None:
    if victim.endswith("process"):
        with contextlib.suppress(ProcessLookupError):  # it was replaced
            os.kill(pids[victim], signal.SIGKILL)
    elif victim == "here's daemon":
        test_migrate.kill_daemon(pair.here)
    elif victim == "there's daemon":
        test_migrate.kill_daemon(pair.there)
    else:
        remote.stop()


def gates(pair: movers.Pair) -> tuple[str, str]:
    """Of both disks; `removed` where the source's is no more."""
    shown = pair.here.run("disk", "show", "g1", "--json")
    return "removed" if shown.returncode else pair.gate(pair.here), pair.gate(pair.there)


def settled(pair: movers.Pair) -> bool:
    """Whether a store that was claimed is served."""
    found = adoption(pair.there)
    return found is None or found["stage"] == "kept"


@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_dies_whenever(
    pair: movers.Pair, guest: movers.Guest, remote: remotes.Remote, seed: int
) -> None:
    draw = random.Random(seed)
    victim, after = draw.choice(VICTIMS), draw.uniform(0.0, 0.9)
    pids = {"here's process": pair.here.show()["pid"], "there's process": pair.there.show()["pid"]}
    source = pair.here.show()["id"]
    guest.leave()
    with pair.receiving() as receiving, pair.migrating(OVER) as migrating:
        time.sleep(after)  # when is a matter of chance, and nothing below depends on it
        if victim == "migrate":
            migrating.process.kill()
        elif victim == "receive":
            receiving.process.kill()
        else:
            strike(pair, remote, victim, pids)
        migrating.end()
        if victim != "receive":
            daemons.wait_for(lambda: receiving.is_over() or gates(pair)[1] == "incoming")
            receiving.interrupt()
        receiving.end()
    if victim == "store":
        remote.start()
    for daemon in (pair.here, pair.there):
        if daemon.process is None:
            daemon.start()
    daemons.wait_for(lambda: settled(pair), lambda: str(gates(pair)))
    here, there = gates(pair)
    print(f"{victim} after {after:.2f} s: {here}, {there}")
    if there == "open" and owner(remote) != source:
        assert here in ("removed", "handed", "leaving")
    elif here == "open":
        if there == "arrived":
            refused = pair.there.run("receive", "g1", "--accept")
            assert refused.returncode == 1 and "the disk is where it was" in refused.stderr
        guest.check(pair.here.wait_running())
        return
    else:
        assert (here, there) in (("handed", "arrived"), ("leaving", "arrived"))
        if draw.random() < 0.5:
            pair.here.ok("migrate", "g1", "--take-back")
            refused = pair.there.run("receive", "g1", "--accept")
            assert refused.returncode == 1 and "the disk is where it was" in refused.stderr
            guest.check(pair.here.wait_running())
            return
        pair.there.ok("receive", "g1", "--accept")
    if here != "removed":
        refused = pair.here.run("migrate", "g1", "--take-back")
        assert refused.returncode == 1
        pair.here.ok("disk", "rm", "g1", "--force")
    guest.check(pair.there.wait_running())
    assert owner(remote) == pair.there.show()["id"]
