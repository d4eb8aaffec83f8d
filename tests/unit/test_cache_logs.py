"""Lines of the log, as text, as JSON, and as the journal wants them."""

import datetime
import io
import json
import logging
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from swaptide.cache import logs
from swaptide.cache.errors import UsageError

PROGRAM = """
import logging, os, sys, warnings
from swaptide.cache import logs
if sys.argv[2] == "journal":
    found = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
logs.to_stderr(logs.Form(sys.argv[1]))
logs.to_stderr(logs.Form(sys.argv[1]))
log = logging.getLogger("swaptide.host.x")
log.debug("never seen")
log.info("disk added name=%s size_bytes=%d", "g1", 4096)
try:
    raise ValueError("two\\nlines")
except ValueError:
    log.exception("it failed name=%s", "g1")
logging.getLogger("other").warning("of %s, and\\nmore", "others")
warnings.warn("beware")
log.critical("the end")
"""


def record(template: str, *args: Any, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("swaptide.host.disks", level, "x.py", 1, template, args, None)


def told(template: str, *args: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(logs.JsonFormatter().format(record(template, *args)))
    return found


def run(form: str, where: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, form, where], capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_json_takes_template_and_arguments_apart() -> None:
    found = told("disk frozen, writes wait name=%s size_bytes=%d error=%r", "g1", 4096, "it 'fails'")
    assert list(found) == ["time", "level", "part", "event", "name", "size_bytes", "error"]
    assert found["event"] == "disk frozen, writes wait"
    assert (found["level"], found["part"]) == ("INFO", "swaptide.host.disks")
    assert (found["name"], found["size_bytes"], found["error"]) == ("g1", 4096, "it 'fails'")


def test_values_keep_their_types() -> None:
    found = told(
        "x a=%s b=%s c=%.1f d=%s e=%r f=%s g=%s h=%s",
        True,
        None,
        0.123456789,
        pathlib.Path("/a b"),
        ValueError("no"),
        logs.Form.JSON,
        float("inf"),
        "\udcff",
    )
    values = [found[key] for key in "abcdefgh"]
    assert values == [True, None, 0.123457, "/a b", "no", "json", "inf", "\\udcff"]


def test_a_mapping_as_the_only_argument() -> None:
    assert told("targets targets=%s", {"g1": 4096, "g2": None})["targets"] == {"g1": 4096, "g2": None}


def test_a_fixed_text_is_a_value_as_well() -> None:
    found = told("metrics not served error=%r remedy='another port, perhaps' id=%d", "taken", 7)
    assert (found["error"], found["remedy"], found["id"]) == ("taken", "another port, perhaps", 7)


@pytest.mark.parametrize("template", ["of %s", "a=%s; b", "", "x a=%s, b=1", "%s"])
def test_what_is_of_another_form_is_one_event(template: str) -> None:
    found = told(template, *["y"] * template.count("%s"))
    assert list(found) == ["time", "level", "part", "event"]
    assert found["event"] == template.replace("%s", "y")


def test_time_is_rfc3339_to_the_millisecond() -> None:
    at = record("x")
    at.created = 1_700_000_000.0625
    found = json.loads(logs.JsonFormatter().format(at))["time"]
    assert found == "2023-11-14T22:13:20.062Z"
    assert datetime.datetime.fromisoformat(found).timestamp() == pytest.approx(at.created, abs=0.001)


def test_text_as_people_read_it() -> None:
    at = record("disk added name=%s left=%r", "g1", None)
    line = logs.TextFormatter().format(at)
    assert line.startswith("time=20")
    assert line.endswith(" level=INFO part=swaptide.host.disks disk added name=g1 left=None")


def test_text_on_standard_error() -> None:
    lines = run("text", "file")
    assert lines[0].split(" ", 1)[1] == "level=INFO part=swaptide.host.x disk added name=g1 size_bytes=4096"
    assert lines[2] == "Traceback (most recent call last):"
    assert sum("the end" in line for line in lines) == 1, "set up twice, and told once"


def test_json_on_standard_error() -> None:
    found = [json.loads(line) for line in run("json", "file")]
    assert [each["event"] for each in found[:3]] == ["disk added", "it failed", "of others, and\nmore"]
    assert found[1]["exception"].splitlines()[-2:] == ["ValueError: two", "lines"]
    assert "beware" in found[3]["event"] and found[3]["part"] == "py.warnings"
    assert [each["level"] for each in found] == ["INFO", "ERROR", "WARNING", "WARNING", "CRITICAL"]


def test_the_journal_gets_a_priority_on_each_line_and_no_time() -> None:
    lines = run("text", "journal")
    assert lines[0] == "<6>level=INFO part=swaptide.host.x disk added name=g1 size_bytes=4096"
    traceback = lines[1 : lines.index("<3>lines") + 1]
    assert traceback[1] == "<3>Traceback (most recent call last):"
    assert all(line.startswith("<3>") for line in traceback)
    assert lines[-1] == "<2>level=CRITICAL part=swaptide.host.x the end"


def test_the_journal_gets_json_behind_its_priority() -> None:
    lines = run("json", "journal")
    assert [line[:3] for line in lines] == ["<6>", "<3>", "<4>", "<4>", "<2>"]
    assert all(json.loads(line[3:])["time"] for line in lines)


def test_a_stream_that_is_inherited_from_a_service_is_not_the_journal(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "log", "w") as file:
        found = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + 1}")
        assert not logs.is_journal(file)
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert logs.is_journal(file)
        monkeypatch.delenv("JOURNAL_STREAM")
        assert not logs.is_journal(file)
    assert not logs.is_journal(io.StringIO())


def test_forms_by_name() -> None:
    assert logs.parse_form("log-format", "json") is logs.Form.JSON
    with pytest.raises(UsageError, match="log-format=xml: must be one of text, json"):
        logs.parse_form("log-format", "xml")


def test_objects_among_lines_of_others() -> None:
    lines = ['{"event": "x", "a": 1}', "nbdkit: error: no", "{}", "{", '{"event": 7}', "[" * 100_000, "7"]
    assert list(logs.objects(lines)) == [{"event": "x", "a": 1}]
