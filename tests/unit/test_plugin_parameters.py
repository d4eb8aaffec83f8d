"""The plugin's key=value parameters."""

import pathlib

import pytest

from swaptide.cache import engine, errors, logs, sizes
from swaptide.cache.errors import UsageError
from swaptide.nbdkit_plugin import parameters


@pytest.mark.parametrize(
    ("text", "value"), [("4096", 4096), ("512M", 512 << 20), ("4G", 4 << 30), ("1t", 1 << 40), ("8KiB", 8192)]
)
def test_sizes_are_powers_of_1024(text: str, value: int) -> None:
    assert sizes.parse("size", text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "4X", "1.5G", "M", "0x10", "4 G", "９M9", "65T", "9" * 5000])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="size="):
        sizes.parse("size", text)


def test_every_parameter_reaches_its_field() -> None:
    settings = engine.Settings()
    given = {
        "size": "1G",
        "ram": "256M",
        "floor": "64M",
        "name": "g1",
        "swap-label": "L",
        "force": "yes",
        "encrypt": "no",
        "compress": "lz4+zstd",
        "clean-ahead": "40%",
    }
    for key, value in {**given, "state": "/dev/shm/s", "spill": "/var/tmp/s"}.items():
        settings = parameters.apply(settings, key, value)
    assert settings == engine.Settings(
        size_bytes=1 << 30,
        ram_bytes=256 << 20,
        floor_bytes=64 << 20,
        name="g1",
        state=pathlib.Path("/dev/shm/s"),
        spill=pathlib.Path("/var/tmp/s"),
        swap_label="L",
        encrypt=False,
        compress="lz4+zstd",
        clean_ahead=0.4,
        force=True,
    )


@pytest.mark.parametrize("text", ["", "%", "101", "101%", "-1", "0.5", "25%%", "half"])
def test_what_is_no_share_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="clean-ahead="):
        parameters.apply(engine.Settings(), "clean-ahead", text)


def test_unknown_parameters_are_named() -> None:
    with pytest.raises(UsageError, match="unknown parameter sise=1G"):
        parameters.apply(engine.Settings(), "sise", "1G")


def test_the_form_of_the_log() -> None:
    assert parameters.log_format("json") is logs.Form.JSON
    with pytest.raises(UsageError, match="log-format=xml"):
        parameters.log_format("xml")
    with pytest.raises(UsageError, match="known are .*log-format"):
        parameters.apply(engine.Settings(), "log_format", "json")


HOSTILE = (
    "",
    " ",
    "-1",
    "nan",
    "9" * 300,
    "two\nlines",
    "\x1b[2J\x07",
    "n" * 5000,
    "1.5G",
    "4096Q",
    "٤",
    "%s%n",
    "\u202egnal",
)


@pytest.mark.parametrize("key", [*parameters._PARAMETERS, "nope"])
@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
def test_what_nobody_should_give_is_refused_by_name_or_taken(key: str, value: str) -> None:
    try:
        parameters.apply(engine.Settings(), key, value)
    except UsageError as error:
        said = errors.plain(str(error))
        assert key in said and len(said) < 1000 and said.isprintable()
        assert ": " in said or "; " in said
    else:
        assert parameters._PARAMETERS[key][1] in (
            parameters._path,
            parameters._text,
            parameters._spill,
            parameters._name,
        )
