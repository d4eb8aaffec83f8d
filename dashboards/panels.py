"""Everything that the dashboards ask Prometheus: the panels of the page and of Grafana, the page's rows.

Pure data.  In an `expr`, `@disk` stands for the labels that choose disks, `@host` for those that choose
hosts, and `@rate` for the window that rates are taken over.  docs/metrics.md says what the metrics are.
"""

import dataclasses
from typing import Final

# Where a page may be, and how that is called.
TIERS: Final = (
    ("raw", "raw, in RAM"),
    ("packed", "packed, in RAM"),
    ("spilled", "on disk"),
    ("same_filled", "same-filled"),
)
# Each of them has its colour wherever it is drawn, much as in `swaptide top`; other lines have others.
# People who see few colours can tell them apart: most are of Okabe and Ito.
COLOURS: Final = {
    "raw": "#009e73",
    "packed": "#56b4e9",
    "spilled": "#0072b2",
    "same_filled": "#cc79a7",
    "overhead": "#c4c4c4",
}
PALETTE: Final = ("#ff8000", "#b829ff", "#b9a06e", "#914646", "#465f91", "#c61010")
RAW, PACKED, SPILLED, SAME, OVERHEAD = COLOURS.values()


@dataclasses.dataclass(frozen=True)
class Query:
    """One expression; `name` is what its lines are called, where {{label}} stands for a label's value.

    `colour` is for an expression of one line; None takes that of the line's disk, or the next of the palette.
    `dashed` is for a limit beside what it limits.
    """

    expr: str
    name: str
    colour: str | None = None
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
    """One graph.  `unit` is one of UNITS; `stacked` makes areas that add up."""

    title: str
    about: str
    unit: str
    queries: tuple[Query, ...]
    stacked: bool = False
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
    """One figure in a disk's row.  `unit` is one of UNITS."""

    title: str
    about: str
    unit: str
    expr: str


# What a panel's figures are, and what Grafana calls that.
UNITS: Final = {
    "bytes": "bytes",
    "bytes/s": "binBps",
    "seconds": "s",
    "share": "percentunit",
    "seconds/s": "percentunit",
    "per second": "ops",
    "ratio": "none",
}

_READS: Final = 'swaptide_disk_request_duration_seconds_bucket{kind=~"hit|miss",@disk}'


def _tiers(metric: str, names: tuple[tuple[str, str, str], ...]) -> tuple[Query, ...]:
    return tuple(Query(f'sum({metric}{{tier="{tier}",@disk}})', name, colour) for tier, name, colour in names)


def _quantile(quantile: float, buckets: str) -> str:
    return f"histogram_quantile({quantile}, sum by (le) (rate({buckets}[@rate])))"


def _by_disk(expr: str, name: str = "{{disk}}", dashed: bool = False) -> Query:
    return Query(expr, name, dashed=dashed)


PANELS: Final = (
    Panel(
        "Where every byte of guest swap is",
        "Pages of the guests by where they are: as they were written in RAM, packed in RAM, on disk alone,"
        " or all one word, which takes no memory.",
        "bytes",
        _tiers(
            "swaptide_disk_content_bytes",
            (
                ("raw", "raw, in RAM", RAW),
                ("packed", "packed, in RAM", PACKED),
                ("spilled", "on disk", SPILLED),
                ("same_filled", "same-filled", SAME),
            ),
        ),
        stacked=True,
        wide=True,
    ),
    Panel(
        "RAM that the disks take",
        "The host's memory that the disks use, by what for.",
        "bytes",
        (
            *_tiers(
                "swaptide_disk_ram_tier_bytes",
                (
                    ("raw", "raw", RAW),
                    ("packed", "packed", PACKED),
                    ("overhead", "tables and slack", OVERHEAD),
                ),
            ),
        ),
        stacked=True,
    ),
    Panel(
        "RAM and targets",
        "What each disk uses and may use.  A target that falls is the host taking memory back.",
        "bytes",
        (
            _by_disk("sum by (instance, disk) (swaptide_disk_ram_bytes{@disk})", "{{disk}}"),
            _by_disk("sum by (instance, disk) (swaptide_disk_target_bytes{@disk})", "{{disk}} target", True),
        ),
    ),
    Panel(
        "Hit rate",
        "Share of the pages read that were in RAM.",
        "share",
        (
            _by_disk(
                'sum by (instance, disk) (rate(swaptide_disk_read_pages_total{tier!="spilled",@disk}[@rate]))'
                " / sum by (instance, disk) (rate(swaptide_disk_read_pages_total{@disk}[@rate]))"
            ),
        ),
    ),
    Panel(
        "Pages read, by where they were",
        "On disk means that the guest waited for the disk.",
        "per second",
        tuple(
            Query(f'sum(rate(swaptide_disk_read_pages_total{{tier="{tier}",@disk}}[@rate]))', name, colour)
            for tier, name, colour in (
                ("raw", "raw, in RAM", RAW),
                ("packed", "packed, in RAM", PACKED),
                ("spilled", "on disk", SPILLED),
            )
        ),
        stacked=True,
    ),
    Panel(
        "Latency of reads",
        "What the guests wait for a read, in the plugin: 99 of 100 less than p99.",
        "seconds",
        (
            Query(_quantile(0.5, _READS), "p50"),
            Query(_quantile(0.99, _READS), "p99"),
            Query(_quantile(0.999, _READS), "p99.9"),
            Query(
                _quantile(0.99, 'swaptide_disk_request_duration_seconds_bucket{kind="miss",@disk}'),
                "p99 from disk",
                SPILLED,
            ),
        ),
    ),
    Panel(
        "Latency of writes",
        "Waits for memory are in it.",
        "seconds",
        (
            Query(_quantile(0.5, 'swaptide_disk_request_duration_seconds_bucket{kind="write",@disk}'), "p50"),
            Query(
                _quantile(0.99, 'swaptide_disk_request_duration_seconds_bucket{kind="write",@disk}'), "p99"
            ),
        ),
    ),
    Panel(
        "Waiting for memory",
        "How long, in each second, writes to a disk waited for its movers to make room: added up over all"
        " that waited at once, so it can be more than 100 %.",
        "seconds/s",
        (_by_disk("sum by (instance, disk) (rate(swaptide_disk_stall_duration_seconds_sum{@disk}[@rate]))"),),
    ),
    Panel(
        "Swapped in and out",
        "What the guests read and write.",
        "bytes/s",
        (
            Query(
                'sum(rate(swaptide_disk_request_bytes_total{op="write",@disk}[@rate]))', "out, to swaptide"
            ),
            Query(
                'sum(rate(swaptide_disk_request_bytes_total{op="read",@disk}[@rate]))', "in, from swaptide"
            ),
        ),
    ),
    Panel(
        "To and from the store",
        "What was spilled, and read back.",
        "bytes/s",
        (
            Query("sum(rate(swaptide_disk_spill_written_bytes_total{@disk}[@rate]))", "written"),
            Query("sum(rate(swaptide_disk_spill_read_bytes_total{@disk}[@rate]))", "read"),
        ),
    ),
    Panel(
        "Host memory",
        "What is free on the host, and in the memory cgroups that the disks live in; what is to stay free;"
        " what reservations keep free beyond it.",
        "bytes",
        (
            Query("swaptide_room_free_bytes{@host}", "{{room}} free"),
            Query("swaptide_room_reserve_bytes{@host}", "{{room}} to stay free", dashed=True),
            Query("swaptide_reservations_held_bytes{@host}", "held for reservations"),
        ),
    ),
    Panel(
        "Pressure",
        "Share of the time in which some task, or every task, of the host stood still for want of memory"
        " (PSI).",
        "share",
        (
            Query("rate(swaptide_host_pressure_waiting_seconds_total{@host}[@rate])", "some"),
            Query("rate(swaptide_host_pressure_stalled_seconds_total{@host}[@rate])", "all"),
        ),
    ),
    Panel(
        "How long giving memory back takes",
        "From a target that was lowered to the moment when it holds; only where one was.",
        "seconds",
        (
            Query(_quantile(0.5, "swaptide_disk_squeeze_duration_seconds_bucket{@disk}"), "p50"),
            Query(_quantile(0.99, "swaptide_disk_squeeze_duration_seconds_bucket{@disk}"), "p99"),
        ),
    ),
    Panel(
        "Packing ratio",
        "Bytes of the guest for each byte that packed pages take in RAM.",
        "ratio",
        (
            _by_disk(
                'sum by (instance, disk) (swaptide_disk_content_bytes{tier="packed",@disk})'
                ' / (sum by (instance, disk) (swaptide_disk_ram_tier_bytes{tier="packed",@disk}) > 0)'
            ),
        ),
    ),
    Panel(
        "Spill space in use",
        "By whole segments.  It was reserved in full when the disk was made.",
        "share",
        (
            _by_disk(
                "sum by (instance, disk) (swaptide_disk_spill_used_bytes{@disk})"
                " / sum by (instance, disk) (swaptide_disk_spill_size_bytes{@disk})"
            ),
        ),
    ),
    Panel(
        "Guests' balloons",
        "What each registered guest has, and calls available.",
        "bytes",
        (
            Query("swaptide_guest_actual_bytes{@host}", "{{guest}} has"),
            Query("swaptide_guest_available_bytes{@host}", "{{guest}} available"),
        ),
        wide=True,
    ),
)

_DISK: Final = "sum by (instance, disk) "
_ALL_READS: Final = f"{_DISK}(rate(swaptide_disk_read_pages_total{{@disk}}[5m]))"

# A row of the page is of one disk: @disk stands for its labels.  In Grafana each is a column of one table.
STATE: Final = "swaptide_disk_state{@disk} == 1"
SIZE: Final = Column("Size", "what the guest sees", "bytes", f"{_DISK}(swaptide_disk_size_bytes{{@disk}})")
COLUMNS: Final = (
    Column("RAM", "of the host, that it uses", "bytes", f"{_DISK}(swaptide_disk_ram_bytes{{@disk}})"),
    Column("Target", "what it may use now", "bytes", f"{_DISK}(swaptide_disk_target_bytes{{@disk}})"),
    Column("Cap", "what it may ever use", "bytes", f"{_DISK}(swaptide_disk_cap_bytes{{@disk}})"),
    Column(
        "Hit rate",
        "pages read that were in RAM, of the last 5 minutes",
        "share",
        f'{_DISK}(rate(swaptide_disk_read_pages_total{{tier!="spilled",@disk}}[5m])) / {_ALL_READS} >= 0',
    ),
    Column(
        "p99",
        "99 of 100 reads took less, of the last 5 minutes",
        "seconds",
        "histogram_quantile(0.99, sum by (instance, disk, le) (rate("
        'swaptide_disk_request_duration_seconds_bucket{kind=~"hit|miss",@disk}[5m]))) >= 0',
    ),
    Column(
        "Stalled",
        "how long writes waited for memory in each second, of the last 5 minutes",
        "seconds/s",
        f"{_DISK}(rate(swaptide_disk_stall_duration_seconds_sum{{@disk}}[5m]))",
    ),
    Column(
        "Out",
        "swapped out in each second, of the last 5 minutes",
        "bytes/s",
        f'{_DISK}(rate(swaptide_disk_request_bytes_total{{op="write",@disk}}[5m]))',
    ),
    Column(
        "In",
        "swapped in in each second, of the last 5 minutes",
        "bytes/s",
        f'{_DISK}(rate(swaptide_disk_request_bytes_total{{op="read",@disk}}[5m]))',
    ),
    Column(
        "Deaths",
        "how often its process ended without being asked to, today",
        "ratio",
        f"round({_DISK}(increase(swaptide_disk_process_deaths_total{{@disk}}[1d])))",
    ),
)

# The bar in a row: shares of the disk's size.
BAR: Final = tuple(
    Column(
        title,
        f"its pages that are {title}",
        "share",
        f'{_DISK}(swaptide_disk_content_bytes{{tier="{tier}",@disk}}) / {SIZE.expr}',
    )
    for tier, title in TIERS
)

# What is wrong now, and what is about to be.
FIRING: Final = 'sort_desc(ALERTS{alertname=~"Swaptide.+",alertstate="firing"})'
PENDING: Final = 'sort_desc(ALERTS{alertname=~"Swaptide.+",alertstate="pending"})'
