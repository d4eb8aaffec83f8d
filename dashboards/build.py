"""Writes the console page and Grafana's dashboard out of panels.py: `python dashboards/build.py`.

Both are committed, so that an operator needs nothing but the files; a test holds them against this.
"""

import html
import json
import pathlib
import re
import sys
from typing import Any, Final

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from dashboards import panels  # noqa: E402

HERE: Final = pathlib.Path(__file__).resolve().parent
PAGE: Final = HERE / "consoles/swaptide.html"
GRAFANA: Final = HERE / "swaptide-grafana.json"

# How Grafana calls what is chosen there; the page's script knows the same names.
_HOST: Final = 'instance=~"$instance"'
_DISK: Final = f'{_HOST},disk=~"$disk"'
_RATE: Final = "$__rate_interval"
# In a row of the page, the arguments of printf.
_ROW: Final = "instance=%[1]q,disk=%[2]q"
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS, _HEIGHT = 24, 8
# How a unit is shown in a row of the page: functions of Prometheus's templates, which show more digits
# than anybody reads, and no space before units.
_SHORT: Final = 'reReplaceAll "^([0-9]+(?:[.][0-9])?)[0-9]*([a-zA-Zµ%%]*)$" "${1} ${2}%s"'
_BYTES: Final = 'humanize1024 | reReplaceAll "ki$" "Ki"'
_TIME: Final = 'humanizeDuration | reReplaceAll "us$" "µs"'
_TINY: Final = 'reReplaceAll "^.*e-.*$" "0%"'
_SHOWN: Final = {
    "bytes": f"{_BYTES} | {_SHORT % 'B'}",
    "bytes/s": f"{_BYTES} | {_SHORT % 'B/s'}",
    "seconds": f"{_TIME} | {_SHORT % ''}",
    "seconds/s": f"humanizePercentage | {_TINY} | {_SHORT % ''}",
    "share": f"humanizePercentage | {_TINY} | {_SHORT % ''}",
    "ratio": 'printf "%.0f"',
}


def files() -> dict[pathlib.Path, str]:
    """What has to be in each of the files."""
    return {PAGE: page(), GRAFANA: json.dumps(grafana(), indent=2) + "\n"}


def expr(query: panels.Query) -> str:
    """A panel's expression as Grafana and the page's script take it."""
    return query.expr.replace("@disk", _DISK).replace("@host", _HOST).replace("@rate", _RATE)


def page() -> str:
    """The console page: a template of Prometheus's."""
    text = (HERE / "page.html").read_text()
    parts = {
        "PANELS": _page_panels(),
        "HEADERS": _headers(),
        "CELLS": _cells(),
        "BAR": _bar(),
        "AS_BYTES": _SHOWN["bytes"],
        "AS_SHARE": _SHOWN["share"],
        "STATE": _range(panels.STATE),
        "FIRING": f"{{{{- range query `{panels.FIRING}` }}}}",
        "PENDING": f"{{{{- range query `{panels.PENDING}` }}}}",
        "COLOURS": "".join(
            f".{tier} {{ background: {colour}; }} " for tier, colour in panels.COLOURS.items()
        ),
        "SCRIPT": (HERE / "page.js").read_text().rstrip(),
    }
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part.rstrip())
    return text


def grafana() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "title": "swaptide",
        "uid": "swaptide",
        "description": "Swap disks for KVM guests: where every page is, hit rates, latencies, memory",
        "tags": ["swaptide"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "schemaVersion": 38,
        "version": 1,
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "panels": _grafana_panels(),
    }


def _page_panels() -> str:
    found = [
        {
            "title": panel.title,
            "about": panel.about,
            "unit": panel.unit,
            "stacked": panel.stacked,
            "wide": panel.wide,
            # Two braces would be the template's.
            "queries": [
                {
                    "expr": expr(query),
                    "name": query.name.replace("{{", "[").replace("}}", "]"),
                    "colour": query.colour,
                    "dashed": query.dashed,
                }
                for query in panel.queries
            ],
        }
        for panel in panels.PANELS
    ]
    return json.dumps({"palette": panels.PALETTE, "panels": found}, indent=1)


def _headers() -> str:
    return "".join(
        f'<th title="{html.escape(column.about)}">{column.title}</th>'
        for column in (panels.SIZE, *panels.COLUMNS)
    )


def _cells() -> str:
    return "\n      ".join(map(_cell, (panels.SIZE, *panels.COLUMNS)))


def _cell(column: panels.Column) -> str:
    value = f"{{{{ . | first | value | {_SHOWN[column.unit]} }}}}"
    return f"<td>{_with(column.expr)}{value}{{{{ else }}}}–{{{{ end }}}}</td>"


def _bar() -> str:
    width = '{{ . | first | value | printf "%.4f" }}'
    return "".join(
        f'{_with(column.expr)}<i class="{tier}" style="flex: 0 0 calc(100% * {width})"></i>{{{{ end }}}}'
        for (tier, _), column in zip(panels.TIERS, panels.BAR, strict=True)
    )


def _with(expr: str) -> str:
    """The beginning of a part that is there if the expression has a value for the row's disk."""
    return f"{{{{ with printf `{expr.replace('@disk', _ROW)}` $instance $disk | query }}}}"


def _range(expr: str) -> str:
    """The same for a part that is there once for each value."""
    return f"{{{{ range printf `{expr.replace('@disk', _ROW)}` $instance $disk | query }}}}"


def _grafana_panels() -> list[dict[str, Any]]:
    made = [_wrong_table(), _disks_table()]
    x, y = 0, sum(table["gridPos"]["h"] for table in made)
    for number, panel in enumerate(panels.PANELS, len(made) + 1):
        width = _COLUMNS if panel.wide else _COLUMNS // 2
        if x + width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        made.append(_grafana_panel(number, panel, {"x": x, "y": y, "w": width, "h": _HEIGHT}))
        x += width
    return made


def _grafana_panel(number: int, panel: panels.Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": panels.UNITS[panel.unit],
                "min": 0,
                "color": {"mode": "palette-classic-by-name"},
                "custom": {
                    "drawStyle": "line",
                    "lineWidth": 1,
                    "fillOpacity": 60 if panel.stacked else 0,
                    "showPoints": "never",
                    "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
                },
            },
            "overrides": [override for query in panel.queries for override in _overrides(query)],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "none"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "editorMode": "code",
                "expr": expr(query),
                "legendFormat": query.name,
                "range": True,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _wrong_table() -> dict[str, Any]:
    """What the page lists first."""
    shown = ["alertname", "alertstate", "severity", "instance", "disk", "guest", "room"]
    return {
        **_table(1, "What is wrong now", {"x": 0, "y": 0, "w": _COLUMNS, "h": 5}),
        "targets": [_instant("A", panels.FIRING), _instant("B", panels.PENDING)],
        "transformations": [
            {"id": "merge", "options": {}},
            {"id": "filterFieldsByName", "options": {"include": {"names": shown}}},
        ],
    }


def _disks_table() -> dict[str, Any]:
    """One row for each disk, a column for each query."""
    columns = (panels.SIZE, *panels.BAR, *panels.COLUMNS)
    names = [chr(ord("A") + index) for index in range(len(columns) + 1)]
    exprs = (panels.STATE, *(column.expr for column in columns))
    targets = [_instant(name, each.replace("@disk", _DISK)) for name, each in zip(names, exprs, strict=True)]
    renamed = {f"Value #{name}": column.title for name, column in zip(names[1:], columns, strict=True)}
    hidden = {"Time": True, "Value #A": True, "__name__": True, "job": True}
    overrides = [
        {
            "matcher": {"id": "byName", "options": column.title},
            "properties": [{"id": "unit", "value": panels.UNITS[column.unit]}],
        }
        for column in columns
    ]
    return {
        **_table(2, "Disks", {"x": 0, "y": 5, "w": _COLUMNS, "h": 8}),
        "targets": targets,
        "transformations": [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": hidden, "renameByName": renamed}},
        ],
        "fieldConfig": {"defaults": {}, "overrides": overrides},
    }


def _table(number: int, title: str, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "table",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {"showHeader": True},
    }


def _instant(name: str, expr: str) -> dict[str, Any]:
    return {
        "refId": name,
        "datasource": _SOURCE,
        "editorMode": "code",
        "expr": expr,
        "format": "table",
        "instant": True,
        "range": False,
    }


def _overrides(query: panels.Query) -> list[dict[str, Any]]:
    """How its lines differ from others."""
    found: list[tuple[str, dict[str, Any]]] = []
    if query.colour is not None:
        found.append(("color", {"mode": "fixed", "fixedColor": query.colour}))
    if query.dashed:
        found.append(("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}))
    return [
        {
            "matcher": {"id": "byRegexp", "options": _lines(query.name)},
            "properties": [{"id": key, "value": value}],
        }
        for key, value in found
    ]


def _lines(name: str) -> str:
    """What matches the names of a query's lines."""
    return "/^" + re.sub(r"\{\{\w+\}\}", ".+", name.replace(".", r"\.")) + "$/"


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return [
        source,
        _variable("instance", "Host", "label_values(swaptide_build_info, instance)"),
        _variable("disk", "Disk", f"label_values(swaptide_disk_size_bytes{{{_HOST}}}, disk)"),
    ]


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def main() -> None:
    """Write both."""
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
