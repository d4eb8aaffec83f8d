"""`make dashboard`: a real Prometheus with the page, the rules and the alerts, on a daemon that runs here.

It runs until Ctrl-C, and leaves nothing.
"""

import argparse
import contextlib
import http.client
import pathlib
import re
import signal
import sys
import tempfile
from typing import Final, NoReturn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from dashboards import prometheus  # noqa: E402

METRICS: Final = "127.0.0.1:9819"
LISTEN: Final = "127.0.0.1:9890"
_LISTEN: Final = re.compile(r"(?:[0-9A-Za-z.-]*|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


class _EndedError(Exception):
    """A signal asked us to end."""


def main() -> int:
    """Returns the exit status."""
    given = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        _check(given.metrics, given.listen)
        with tempfile.TemporaryDirectory(prefix="swaptide-dashboard-") as root:
            _serve(pathlib.Path(root), given)
    except _EndedError:
        return 0
    except prometheus.PrometheusError as error:
        print(f"dashboard: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", default=METRICS, help="where the daemon answers (ADDR:PORT)")
    parser.add_argument("--listen", default=LISTEN, help="where Prometheus shall answer (ADDR:PORT)")
    parser.add_argument("--interval", default="2s", help="how often the daemon is asked")
    return parser.parse_args()


def _check(metrics: str, listen: str) -> None:
    """Raises PrometheusError if there is no daemon to show, or no place for it."""
    address = _LISTEN.fullmatch(listen)
    if address is None or int(address[1]) > 65535:
        raise prometheus.PrometheusError(
            f"{listen!r} is no address to listen at; write for example {LISTEN}:"
            " make dashboard LISTEN=ADDR:PORT"
        )
    url = f"http://{metrics}/metrics"
    try:
        with prometheus.DIRECT.open(url, timeout=20) as answer:
            ours = b"swaptide_build_info" in answer.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise prometheus.PrometheusError(
            f"no daemon answers at {url!r}: {reason}; start `swaptide serve`,"
            " or say where it is: make dashboard METRICS=ADDR:PORT"
        ) from error
    if not ours:
        raise prometheus.PrometheusError(
            f"what answers at {url} is no swaptide daemon; say where it is: make dashboard METRICS=ADDR:PORT"
        )
    if not prometheus.is_free(listen):
        raise prometheus.PrometheusError(
            f"{listen} is taken; choose another address: make dashboard LISTEN=ADDR:PORT"
        )


def _serve(root: pathlib.Path, given: argparse.Namespace) -> None:
    """Raises _EndedError when a signal comes, PrometheusError if Prometheus ends before one does."""
    with prometheus.running(root, [given.metrics], given.listen, given.interval) as running:
        print(f"{running.url}/consoles/swaptide.html", flush=True)
        with contextlib.suppress(BrokenPipeError):
            print("Ctrl-C ends it.  Graphs fill from now on.", flush=True)
        running.process.wait()
        raise prometheus.PrometheusError(f"Prometheus ended: {running.last_words()}")


def _end(number: int, frame: object) -> NoReturn:
    # Once is enough: what is being cleaned up is not to be interrupted.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise _EndedError


if __name__ == "__main__":
    sys.exit(main())
