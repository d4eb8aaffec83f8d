"""Asks an address for /metrics as Prometheus does, and reads the answer with prometheus-client's parser."""

import http.client
import pathlib
import re
import shutil
import subprocess
from collections.abc import Mapping

import pytest
from prometheus_client import parser

from tests.real import daemons

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
_SECONDS = 60.0


class Scrape:
    """One answer: its text, and its samples by name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: dict[str, str] = {}
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in parser.text_string_to_metric_families(text):
            self.kinds[family.name] = family.type
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f"twice: {key}"
                self.samples[key] = sample.value

    def value(self, name: str, **labels: str) -> float:
        """One sample, by all its labels."""
        return self.samples[(name, frozenset(labels.items()))]

    def values(self, name: str) -> Mapping[frozenset[tuple[str, str]], float]:
        """All samples of that name by their labels."""
        return {labels: value for (each, labels), value in self.samples.items() if each == name}

    def names(self, label: str, value: str) -> set[str]:
        """The names of all samples with that label."""
        return {name for name, labels in self.samples if (label, value) in labels}


def ask(
    port: int, path: str = "/metrics", method: str = "GET", accept: str = PROMETHEUS, host: str = "127.0.0.1"
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request; returns response and body."""
    connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
    try:
        connection.request(method, path, headers={"Accept": accept})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def scrape(port: int) -> Scrape:
    """What is told there now."""
    response, body = ask(port)
    assert response.status == 200, body
    return Scrape(body.decode())


def port_in(log: pathlib.Path) -> int:
    """The port that a log says metrics are served at, once it does; the last one."""
    daemons.wait_for(lambda: bool(_ports(log)), log.read_text)
    return _ports(log)[-1]


def _ports(log: pathlib.Path) -> list[int]:
    return [int(port) for port in re.findall(r"metrics served url=http://\S+:(\d+)/metrics", log.read_text())]


def lint(text: str) -> str:
    """What promtool has to say against it."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing (Debian package prometheus)")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode == 0) == (not done.stderr), done
    return done.stdout + done.stderr
