"""What a state file says as Prometheus' metrics: the catalogue of them, and their values.

Values without state.  The daemon has more metrics of its own (host/metrics.py); the plugin alone has these.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

import swaptide
from swaptide.cache import face, geometry, histogram, layout


@dataclasses.dataclass(frozen=True, eq=False)
class Metric:
    """One name, with what it means; `labels` are the names of its labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ("disk",)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A histogram: `bounds` in seconds as text, cumulative `counts`, one more than bounds, and the sum."""

    bounds: tuple[str, ...]
    counts: tuple[int, ...]
    sum_seconds: float


Value = int | float | Distribution
Sample = tuple[tuple[str, ...], Value]


class Sheet:
    """The samples of one scrape."""

    def __init__(self, catalogue: Sequence[Metric]) -> None:
        self._samples: dict[Metric, list[Sample]] = {metric: [] for metric in catalogue}

    def put(self, metric: Metric, value: Value, *labels: str) -> None:
        """One sample, with the values of the metric's labels."""
        self._samples[metric].append((labels, value))

    def families(self) -> Iterator[tuple[Metric, Sequence[Sample]]]:
        """Every metric that has samples, in the catalogue's order."""
        return ((metric, samples) for metric, samples in self._samples.items() if samples)


BUILD: Final = Metric(
    "swaptide_build_info",
    "gauge",
    "What runs, always 1: the program's version and the format of its state files.",
    ("version", "state_format"),
)
_INFO: Final = Metric(
    "swaptide_disk_info",
    "gauge",
    "A disk's id, which is its NBD export name, and how it packs, always 1.",
    ("disk", "id", "compress", "encrypted"),
)
_SIZE: Final = Metric("swaptide_disk_size_bytes", "gauge", "What the guest sees.")
_CAP: Final = Metric("swaptide_disk_cap_bytes", "gauge", "The most RAM that the disk may ever use.")
_TARGET: Final = Metric("swaptide_disk_target_bytes", "gauge", "The RAM that it may use now.")
_FLOOR: Final = Metric("swaptide_disk_floor_bytes", "gauge", "What its target never falls below.")
_RAM: Final = Metric("swaptide_disk_ram_bytes", "gauge", "The RAM that counts against the target.")
_RAM_TIER: Final = Metric(
    "swaptide_disk_ram_tier_bytes",
    "gauge",
    "The same by what it holds: raw pages, packed pages; overhead is tables, dead space, slots, buffers.",
    ("disk", "tier"),
)
_CONTENT: Final = Metric(
    "swaptide_disk_content_bytes",
    "gauge",
    "The guest's bytes by where they are: raw and packed in RAM, spilled on disk only, same_filled nowhere.",
    ("disk", "tier"),
)
_SPILL_USED: Final = Metric(
    "swaptide_disk_spill_used_bytes", "gauge", "The part of the spill file that is in use, in whole segments."
)
_SPILL_SIZE: Final = Metric("swaptide_disk_spill_size_bytes", "gauge", "What the spill file has in all.")
_STORE_USED: Final = Metric(
    "swaptide_disk_spill_store_used_bytes",
    "gauge",
    "Of a disk with two spill stores: the part of each that is in use, in whole segments.",
    ("disk", "store"),
)
_STORE_SIZE: Final = Metric(
    "swaptide_disk_spill_store_size_bytes",
    "gauge",
    "Of a disk with two spill stores: what of each may be used.",
    ("disk", "store"),
)
# The values of `store`.
STORES: Final = ("first", "second")
_READ_PAGES: Final = Metric(
    "swaptide_disk_read_pages_total",
    "counter",
    "Pages read by where they were: raw and packed are hits, spilled are misses. Same-filled count as raw.",
    ("disk", "tier"),
)
_FROZEN: Final = Metric("swaptide_disk_frozen", "gauge", "1 while the disk is to stand still.")
_DURATION: Final = Metric(
    "swaptide_disk_request_duration_seconds",
    "histogram",
    "From a request's arrival in the plugin to its answer: hit and miss are reads; write has its waits.",
    ("disk", "kind"),
)
_STALL_DURATION: Final = Metric(
    "swaptide_disk_stall_duration_seconds",
    "histogram",
    "How long writes, trims and zeroes waited for memory, those that did.",
)


def _gauge(name: str, word: str, text: str) -> tuple[Metric, str]:
    return Metric(f"swaptide_disk_{name}", "gauge", text), word


def _counter(name: str, word: str, text: str) -> tuple[Metric, str]:
    return Metric(f"swaptide_disk_{name}_total", "counter", text), word


# Those that are one word of the counters page each.
_WORDS: Final = (
    _gauge("clean_bytes", "clean_bytes", "Content in RAM that is on disk as well."),
    _gauge(
        "stored_pages",
        "stored_pages",
        "Pages that hold data, in any tier; same-filled ones are not among them.",
    ),
    _gauge("same_filled_pages", "same_filled_pages", "Pages of one repeated word, which take no memory."),
    _gauge("spill_content_bytes", "spilled_disk_bytes", "What spilled content takes on disk."),
    _gauge("degraded", "degraded", "1 while the spill store fails, or one of two."),
    _gauge("ram_blocked", "ram_blocked", "1 while the host refuses memory below the target."),
    _gauge(
        "serving",
        "serving",
        "1 while a process answers requests, as it wrote itself; 1 stays if it was killed.",
    ),
    _gauge("clients", "connections", "NBD connections."),
    _gauge("droppable_bytes", "droppable_bytes", "RAM that a falling target gets back at once."),
    _gauge("packable_bytes", "packable_bytes", "RAM that packing would free."),
    _gauge(
        "pack_bytes_per_second", "pack_bytes_per_second", "RAM that packing frees on this host, as measured."
    ),
    _gauge("spill_bytes_per_second", "spill_bytes_per_second", "RAM that writing out frees, as measured."),
    _gauge("process_private_bytes", "private_bytes", "Private memory of the disk's process."),
    _gauge("process_base_bytes", "base_bytes", "The part of it that does not count against the target."),
    _counter("readahead_pages", "read_ahead_pages", "Pages read from disk beyond what was asked for."),
    _counter("readahead_hits", "read_ahead_hits", "Pages that were asked for and had been read ahead."),
    _counter("stalls", "stalls", "Writes, trims and zeroes that had to wait for memory."),
    _counter("freeze_waits", "frozen_waits", "Writes, trims and zeroes that had to wait for a thaw."),
    _counter("pack_tried_pages", "pack_tried_pages", "Pages that were to be packed."),
    _counter("packed_pages", "packed_total_pages", "Pages that shrank of those."),
    _counter("packed_bytes", "packed_total_bytes", "What they shrank to."),
    _counter("strengthened_segments", "strengthened_segments", "Segments packed anew with zstd."),
    _counter(
        "written_ahead_segments", "written_ahead_segments", "Segments written out before it was needed."
    ),
    _counter("dropped_segments", "dropped_segments", "Clean segments whose RAM was given up."),
    _counter("cleaned_pages", "cleaned_pages", "Live pages copied out of segments that were cleaned."),
    _counter("spill_written_bytes", "spill_written_bytes", "Bytes written to the spill file."),
    _counter("spill_read_bytes", "spill_read_bytes", "Bytes read from the spill file."),
)
# Those that are a few words, by their second label.
_GROUPS: Final = (
    (
        Metric("swaptide_disk_requests_total", "counter", "Requests of the guest.", ("disk", "op")),
        {"read": "reads", "write": "writes", "trim": "trims", "zero": "zeroes", "flush": "flushes"},
    ),
    (
        Metric("swaptide_disk_request_bytes_total", "counter", "Bytes that they moved.", ("disk", "op")),
        {"read": "read_bytes", "write": "write_bytes"},
    ),
    (
        Metric(
            "swaptide_disk_spill_errors_total",
            "counter",
            "Reads and writes of the spill file that failed, or brought damaged data.",
            ("disk", "op"),
        ),
        {"read": "spill_read_errors", "write": "spill_write_errors"},
    ),
)
_CLEANED: Final = Metric(
    "swaptide_disk_cleaned_segments_total",
    "counter",
    "Segments that were cleaned, by where they were.",
    ("disk", "place"),
)

CATALOGUE: Final[tuple[Metric, ...]] = (
    BUILD,
    _INFO,
    _SIZE,
    _CAP,
    _TARGET,
    _FLOOR,
    _RAM,
    _RAM_TIER,
    _CONTENT,
    *(metric for metric, _ in _GROUPS),
    _READ_PAGES,
    _DURATION,
    _STALL_DURATION,
    _FROZEN,
    *(metric for metric, _ in _WORDS),
    _CLEANED,
    _SPILL_USED,
    _SPILL_SIZE,
    _STORE_USED,
    _STORE_SIZE,
)

# Every fourth bound of the state file's histograms, from a microsecond to 17 seconds: powers of two.
_STEP: Final = 4
_FIRST: Final = 2 * _STEP
_LAST: Final = 26 * _STEP
BOUNDS: Final = tuple(
    repr(histogram.latency_bound_ns(bucket) / 1e9) for bucket in range(_FIRST, _LAST + 1, _STEP)
)


def put_build(sheet: Sheet) -> None:
    """What runs."""
    sheet.put(BUILD, 1, swaptide.__version__, str(layout.FORMAT_VERSION))


def put_disk(sheet: Sheet, name: str, state: face.StateFace) -> Mapping[str, int]:
    """All that `state` says of the disk `name`; returns its counters, as last published.

    Raises StateError or OSError if it cannot be read; nothing was put then.
    """
    counters, limits, frozen = state.counters(), state.limits(), state.is_frozen()
    histograms, ram, compress = state.histograms(), state.ram_bytes(counters), state.compress()
    who = state.identity
    sheet.put(_INFO, 1, name, who.disk_id, compress, "yes" if who.encrypted else "no")
    sheet.put(_SIZE, who.size_bytes, name)
    sheet.put(_CAP, limits.cap_bytes, name)
    sheet.put(_TARGET, limits.target_bytes, name)
    sheet.put(_FLOOR, limits.floor_bytes, name)
    sheet.put(_RAM, ram, name)
    sheet.put(_FROZEN, int(frozen), name)
    _put_tiers(sheet, name, ram, counters)
    for metric, word in _WORDS:
        sheet.put(metric, counters[word], name)
    for metric, words in _GROUPS:
        for label, word in words.items():
            sheet.put(metric, counters[word], name, label)
    on_disk = counters["cleaned_disk_segments"]
    sheet.put(_CLEANED, max(0, counters["cleaned_segments"] - on_disk), name, "ram")
    sheet.put(_CLEANED, on_disk, name, "disk")
    sheet.put(_SPILL_USED, counters["disk_slots_used"] * geometry.SEGMENT_BYTES, name)
    sheet.put(_SPILL_SIZE, _spill_bytes(who), name)
    if who.slots is not None:
        second = counters["second_slots_used"]
        in_use = (max(0, counters["disk_slots_used"] - second), second)
        for store, used, slots in zip(STORES, in_use, who.slots, strict=True):
            sheet.put(_STORE_USED, used * geometry.SEGMENT_BYTES, name, store)
            sheet.put(_STORE_SIZE, slots * geometry.SEGMENT_BYTES, name, store)
    for kind in ("hit", "miss", "write"):
        sheet.put(_DURATION, distribution(histograms[kind]), name, kind)
    sheet.put(_STALL_DURATION, distribution(histograms["stall"]), name)
    return counters


def distribution(found: histogram.Histogram) -> Distribution:
    """The latencies of a histogram, a bucket for each power of two."""
    counts, below, start = [], 0, 0
    for end in range(_FIRST + 1, _LAST + 2, _STEP):
        below += sum(found.latency[start:end])
        counts.append(below)
        start = end
    counts.append(below + sum(found.latency[start:]))
    return Distribution(BOUNDS, tuple(counts), found.latency_sum_ns / 1e9)


def _put_tiers(sheet: Sheet, name: str, ram: int, counters: Mapping[str, int]) -> None:
    raw, packed = counters["raw_bytes"], counters["packed_bytes"]
    sheet.put(_RAM_TIER, raw, name, "raw")
    sheet.put(_RAM_TIER, packed, name, "packed")
    sheet.put(_RAM_TIER, max(0, ram - raw - packed), name, "overhead")
    sheet.put(_CONTENT, raw, name, "raw")
    sheet.put(_CONTENT, counters["packed_pages"] * geometry.PAGE_BYTES, name, "packed")
    sheet.put(_CONTENT, counters["spilled_bytes"], name, "spilled")
    sheet.put(_CONTENT, counters["same_filled_pages"] * geometry.PAGE_BYTES, name, "same_filled")
    sheet.put(_READ_PAGES, max(0, counters["hits"] - counters["packed_hits"]), name, "raw")
    sheet.put(_READ_PAGES, counters["packed_hits"], name, "packed")
    sheet.put(_READ_PAGES, counters["misses"], name, "spilled")


def _spill_bytes(who: face.Identity) -> int:
    """0 for a size that no disk has: the file is damaged."""
    try:
        return geometry.of_size(who.size_bytes, who.slots).disk_slots * geometry.SEGMENT_BYTES
    except ValueError:
        return 0
