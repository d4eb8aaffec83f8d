"""Grafana's dashboard is one that Grafana takes: by its own model of dashboards, and by rules beyond that."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.cog import encoder, plugins
from grafana_foundation_sdk.models import dashboard, units

from dashboards import panels
from tests import queries

COLUMNS = 24
# Of Grafana 10.0, from which on later ones convert by themselves.
SCHEMA_VERSION = 38


def modelled(made: dict[str, Any]) -> Any:
    """What Grafana's model of a dashboard keeps of it."""
    plugins.register_default_plugins()
    return json.loads(json.dumps(dashboard.Dashboard.from_json(made), cls=encoder.JSONEncoder))


def lost(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """Where `theirs` has not what `ours` says; it may say more, as defaults."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from lost(value, theirs[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{where}[{number}]")
    elif ours != theirs:
        yield f"{where}: {ours!r} became {theirs!r}"


def drawn() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = queries.grafana()["panels"]
    return found


def test_grafanas_model_has_all_of_it() -> None:
    made = queries.grafana()
    assert list(lost(made, modelled(made))) == []


@pytest.mark.parametrize("path", [("gridPos",), ("fieldConfig", "defaults", "custom"), ("options", "legend")])
def test_a_field_that_grafana_does_not_know_would_be_found(path: tuple[str, ...]) -> None:
    made = queries.grafana()
    place = next(panel for panel in made["panels"] if panel["type"] == "timeseries")
    for key in path:
        place = place[key]
    place["stakcing"] = 1
    assert [where.rpartition(".")[2] for where in lost(made, modelled(made))] == ["stakcing"]


def test_the_schema_is_one_that_is_converted_from() -> None:
    made = queries.grafana()
    assert made["schemaVersion"] == SCHEMA_VERSION
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", made["uid"]) and made.get("id") is None


def test_it_is_for_any_prometheus() -> None:
    variables = queries.grafana()["templating"]["list"]
    assert variables[0]["type"] == "datasource" and variables[0]["query"] == "prometheus"
    source = {"type": "prometheus", "uid": f"${{{variables[0]['name']}}}"}
    assert all(variable["datasource"] == source for variable in variables[1:])
    assert all(panel["datasource"] == source for panel in drawn())
    assert all(target["datasource"] == source for target in queries.grafana_targets())


def test_panels_are_told_apart() -> None:
    numbers = [panel["id"] for panel in drawn()]
    assert len(set(numbers)) == len(numbers) and min(numbers) > 0
    for panel in drawn():
        names = [target["refId"] for target in panel["targets"]]
        assert names and len(set(names)) == len(names)


def test_only_variables_that_there_are() -> None:
    names = {variable["name"] for variable in queries.grafana()["templating"]["list"]}
    assert names == {"datasource", "instance", "disk"}
    for target in queries.grafana_targets():
        assert {*re.findall(r"\$(\w+)", target["expr"])} <= {*names, "__rate_interval"}


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in drawn()]
    for one, other in itertools.combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)
    assert all(place["x"] + place["w"] <= COLUMNS and place["h"] > 0 for place in places)


def test_units_are_grafanas() -> None:
    known = {value for value in vars(units).values() if isinstance(value, str)}
    assert set(panels.UNITS.values()) <= known
    shown = [panel["fieldConfig"]["defaults"].get("unit", "none") for panel in drawn()]
    for panel in drawn():
        properties = (
            each for override in panel["fieldConfig"]["overrides"] for each in override["properties"]
        )
        shown += [each["value"] for each in properties if each["id"] == "unit"]
    assert set(shown) <= known and len(set(shown)) > 4


def test_colours_and_dashes_are_of_the_lines_that_they_are_for() -> None:
    by_title = {panel["title"]: panel for panel in drawn()}
    for panel in panels.PANELS:
        overrides = by_title[panel.title]["fieldConfig"]["overrides"]
        for query in panel.queries:
            line = re.sub(r"\{\{\w+\}\}", "some.name", query.name)
            found = {
                each["id"]: each["value"]
                for override in overrides
                if re.match(override["matcher"]["options"].strip("/"), line)
                for each in override["properties"]
            }
            assert found.get("color", {}).get("fixedColor") == query.colour, query
            assert ("custom.lineStyle" in found) == query.dashed, query
