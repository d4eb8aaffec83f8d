"""A Prometheus of our own with all that is in dashboards/: its configuration, its process, its answers.

It keeps to one directory, listens on one address, and is ended by its pid.
"""

import contextlib
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, Final

HERE: Final = pathlib.Path(__file__).resolve().parent
RULES: Final = HERE / "swaptide-rules.yml"
CONSOLES: Final = HERE / "consoles"
JOB: Final = "swaptide"

_READY_SECONDS: Final = 60.0
_END_SECONDS: Final = 20.0
_ANSWER_SECONDS: Final = 60.0
# No proxy of the user's leads to this host.
DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class PrometheusError(Exception):
    """It does not run, or does not answer as asked; str() is one line that says why."""


class Answers:
    """What a Prometheus says, whoever runs it.  `url` is where its pages are, without a slash at the end."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, kind: str, **parameters: str) -> Any:
        """The data of an answer of its interface; raises PrometheusError with its reason if there is none."""
        query = urllib.parse.urlencode(parameters)
        try:
            return json.loads(self.get(f"/api/v1/{kind}?{query}"))["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(json.loads(error.read())["error"]) from error

    def query(self, expr: str) -> list[Any]:
        """What an expression has now: each with `metric` (its labels) and `value`."""
        found: list[Any] = self.ask("query", query=expr)["result"]
        return found

    def get(self, path: str) -> str:
        """A page; raises urllib's HTTPError, and OSError if nothing answers."""
        with DIRECT.open(self.url + path, timeout=_ANSWER_SECONDS) as answer:
            text: str = answer.read().decode()
            return text


class Prometheus(Answers):
    """One of our own."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]", log: pathlib.Path) -> None:
        super().__init__(url)
        self.process = process
        self._log = log

    def last_words(self) -> str:
        """The end of what it logged, on one line."""
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def wait_ready(self) -> None:
        """Wait until it answers; raises PrometheusError if it ends, or does not within a minute."""
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise PrometheusError(f"Prometheus ended: {self.last_words()}")
            with contextlib.suppress(OSError):
                self.get("/-/ready")
                return
            time.sleep(0.05)
        raise PrometheusError(f"Prometheus does not answer at {self.url}: {self.last_words()}")


def configuration(targets: Sequence[str], interval: str) -> str:
    """What it reads: asks `targets` (ADDR:PORT) for their metrics, and tries the rules, each `interval`."""
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": list(targets)}]}],
    }
    return json.dumps(config, indent=2) + "\n"  # which is YAML as well


@contextlib.contextmanager
def running(
    root: pathlib.Path, targets: Sequence[str], listen: str, interval: str = "1s"
) -> Iterator[Prometheus]:
    """One that answers at `listen` (ADDR:PORT), all its files below `root`; raises PrometheusError."""
    program = shutil.which("prometheus")
    if program is None:
        raise PrometheusError(
            "prometheus is missing: install it, on Debian with `apt-get install prometheus`"
        )
    config, log = root / "prometheus.yml", root / "prometheus.log"
    config.write_text(configuration(targets, interval))
    words = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={root / 'data'}",
        f"--web.listen-address={listen}",
        f"--web.console.templates={CONSOLES}",
        f"--web.console.libraries={CONSOLES}",
        "--log.level=warn",
    ]
    with open(log, "wb") as out:
        # A group of its own, so that Ctrl-C is ours to answer.
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0, cwd=root
        )
    try:
        made = Prometheus(f"http://{listen}", process, log)
        made.wait_ready()
        yield made
    finally:
        _end(process)


def is_free(listen: str) -> bool:
    """Whether nobody listens at ADDR:PORT."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError:
            return False
    return True


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
    process.kill()
    process.wait()
