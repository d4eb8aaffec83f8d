"""The daemon's /metrics: asks the daemon's loop what it knows, reads the rest itself, and answers.

The endpoint's thread does the work; the loop only hands out a snapshot.  A scrape that goes wrong is an error
to whoever scrapes and a line in the log, never more.
"""

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Iterator
from typing import Final

import prometheus_client
from prometheus_client import core, registry

from swaptide.cache import endpoint, exposition
from swaptide.cache.errors import SetupError
from swaptide.cache.metrics import Distribution, Sheet
from swaptide.host import config, disks, guests, metrics, steering

log = logging.getLogger(__name__)

_LOOP_SECONDS: Final = 5.0
_OPENMETRICS: Final = "application/openmetrics-text"


class Collector(registry.Collector):
    """The metrics of a daemon for prometheus-client: everything is looked up when it is collected."""

    def __init__(self, scrapes: "Scrapes") -> None:
        self._scrapes = scrapes

    def describe(self) -> list[core.Metric]:
        """Nothing beforehand: names are looked after by the catalogue."""
        return []

    def collect(self) -> Iterator[core.Metric]:
        """All families."""
        return families(self._scrapes.sheet())


class Scrapes:
    """Answers scrapes at the configured address, from `start` until `close`."""

    def __init__(
        self, chosen: config.Config, served: disks.Disks, watched: guests.Guests, balloon: steering.Steering
    ) -> None:
        self._config = chosen
        self._disks = served
        self._guests = watched
        self._balloon = balloon
        self._rooms = steering.rooms_of(chosen)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._endpoint: endpoint.Endpoint | None = None
        # The daemon's own process, by the names that every exporter has.
        self._process = registry.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._process)
        self.registry = registry.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self.registry.register(Collector(self))

    def start(self) -> None:
        """Begin to answer, on the running loop; an address that cannot be had is a warning."""
        self._loop = asyncio.get_running_loop()
        address = endpoint.parse("metrics", self._config.metrics)
        if address is None:
            return
        try:
            self._endpoint = endpoint.Endpoint(address, self.answer)
        except SetupError as error:
            log.warning(
                "metrics not served address=%s error=%r"
                " remedy='choose another one: metrics in the configuration, or serve --metrics'",
                address,
                str(error),
            )
            return
        self._endpoint.start()
        log.info("metrics served url=%s", f"http://{self._endpoint.address}/metrics")
        if not address.is_local:
            log.warning(
                "metrics are open to the network, in clear address=%s"
                " remedy='docs/metrics.md has a proxy that asks for a password'",
                address,
            )

    async def close(self) -> None:
        """Answer no more."""
        if self._endpoint is not None:
            # A scrape under way waits for this loop.
            await asyncio.to_thread(self._endpoint.close)

    def answer(self, accept: str) -> tuple[str, bytes]:
        """Content type and body for who accepts such; the endpoint's thread.

        OpenMetrics only to who takes nothing else: it says the same here, and takes several times as long.
        """
        if _OPENMETRICS in accept and "text/plain" not in accept and "*/*" not in accept:
            encode, kind = prometheus_client.exposition.choose_encoder(accept)
            return kind, encode(self.registry)
        body = exposition.render(self.sheet())
        return exposition.CONTENT_TYPE, body + prometheus_client.generate_latest(self._process)

    def sheet(self) -> Sheet:
        """All samples, as of now.  Any thread but the loop's; one at a time."""
        assert self._loop is not None
        asked = asyncio.run_coroutine_threadsafe(self._gather(), self._loop)
        try:
            snapshot = asked.result(_LOOP_SECONDS)
        except concurrent.futures.TimeoutError:
            asked.cancel()
            raise SetupError(f"the daemon does not answer itself within {_LOOP_SECONDS:.0f} s") from None
        return metrics.tell(snapshot, self._rooms, self._config.proc_dir)

    async def _gather(self) -> metrics.Snapshot:
        now = time.time()
        return metrics.Snapshot(
            tuple(metrics.disk_now(keeper, self._disks.squeezes) for keeper in self._disks.keepers()),
            tuple(guest.report(now) for guest in self._guests.watched),
            self._balloon.figures(),
        )


def families(sheet: Sheet) -> Iterator[core.Metric]:
    """A sheet as prometheus-client has it."""
    for metric, samples in sheet.families():
        name = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        family = core.Metric(name, metric.help, metric.kind)
        for values, value in samples:
            labels = dict(zip(metric.labels, values, strict=True))
            if isinstance(value, Distribution):
                for bound, count in zip((*value.bounds, "+Inf"), value.counts, strict=True):
                    family.add_sample(f"{name}_bucket", {**labels, "le": bound}, count)
                family.add_sample(f"{name}_count", labels, value.counts[-1])
                family.add_sample(f"{name}_sum", labels, value.sum_seconds)
            else:
                family.add_sample(metric.name, labels, value)
        yield family
