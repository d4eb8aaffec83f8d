"""Whatever a configuration, a parameter, a definition or a state file's words hold: our error, or right."""

import json
import os
import pathlib
import tomllib
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from swaptide.cache import engine, face, geometry, layout, spillfile
from swaptide.cache.errors import SwaptideError, UsageError
from swaptide.host import config, definitions
from swaptide.nbdkit_plugin import parameters

EXAMPLES = hypothesis.settings(
    max_examples=int(os.environ.get("SWAPTIDE_FUZZ_EXAMPLES") or 200),
    deadline=None,
    derandomize="SWAPTIDE_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
KEYS = ("run_dir", "state_dir", "memory_dir", "spill_dir", "nbdkit", "threads", "treads")
SCALARS = st.one_of(
    st.text(max_size=30), st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)
)


def toml_of(values: dict[str, Any]) -> bytes:
    """The values as TOML; a JSON string, number or list of these is one."""
    lines = (f"{json.dumps(key)} = {json.dumps(value)}" for key, value in values.items())
    return "\n".join(lines).replace("\\ud", "\\\\ud").encode()


FILES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.dictionaries(
        st.one_of(st.sampled_from(KEYS), st.text(max_size=5)),
        st.one_of(SCALARS, st.lists(SCALARS, max_size=3)),
    ).map(toml_of),
    st.dictionaries(st.sampled_from(KEYS[:5]), st.text(min_size=1, max_size=30), max_size=3).map(toml_of),
)


@EXAMPLES
@hypothesis.given(content=FILES)
@hypothesis.example(content=b'"run_dir"="\\u007f"')
def test_configurations(tmp_path: pathlib.Path, content: bytes) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    try:
        chosen = config.load(file, None)
    except SwaptideError as error:
        assert str(file) in str(error)
        return
    # What is accepted can be written down and read again, and means the same.
    said = tomllib.loads(chosen.as_toml())
    assert said["nbdkit"] == chosen.nbdkit and said["run_dir"] == str(chosen.run_dir)
    assert chosen.run_dir.is_absolute() and 1 <= chosen.threads <= 16


@pytest.mark.parametrize(
    "content", [b"a=" + b"[" * 100_000, b"a=" + b"9" * 100_000, b"\xef\xbb\xbf", b"a" * (2 << 20)]
)
def test_deep_and_long_configurations(tmp_path: pathlib.Path, content: bytes) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError):
        config.load(file, None)


@EXAMPLES
@hypothesis.given(
    key=st.one_of(
        st.sampled_from(
            ("size", "ram", "floor", "name", "swap-label", "encrypt", "compress", "clean-ahead", "force")
        ),
        st.text(),
    ),
    value=st.one_of(st.text(), st.from_regex(r"[0-9]{1,25}[KMGTkmgt]?i?B?", fullmatch=True)),
)
def test_parameters(key: str, value: str) -> None:
    try:
        settings = parameters.apply(engine.Settings(), key, value)
    except UsageError as error:
        assert key in str(error)
        return
    assert settings.size_bytes is None or 0 < settings.size_bytes <= geometry.MAX_SIZE_BYTES
    assert settings.ram_bytes is None or 0 < settings.ram_bytes < 1 << 63


@EXAMPLES
@hypothesis.given(
    content=st.one_of(st.binary(max_size=300), st.dictionaries(st.text(), SCALARS).map(json.dumps))
)
def test_definitions(tmp_path: pathlib.Path, content: bytes | str) -> None:
    """One that is damaged is left out, and left alone."""
    store = definitions.Store(tmp_path / "definitions")
    file = store.directory / "g1.json"
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    file.write_bytes(raw)
    assert store.load() == [] and store.names() == ["g1"]
    assert file.read_bytes() == raw


@EXAMPLES
@hypothesis.given(raw=st.binary(max_size=1200), magic=st.booleans())
def test_headers(tmp_path: pathlib.Path, raw: bytes, magic: bool) -> None:
    """Of a spill file and of a state file; the one is not ours or is, the other an error or has a name."""
    spill, state = tmp_path / "x.spill", tmp_path / "x.state"
    spill.write_bytes((spillfile.MAGIC if magic else b"") + raw + bytes(1200))
    state.write_bytes(
        layout.MAGIC + b"".join(n.to_bytes(8, "little") for n in (layout.FORMAT_VERSION, 2 << 20)) + raw
    )
    found = spillfile.read_header(spill)
    assert found is None or len(found.disk_id) == 36
    try:
        with face.StateFace(state) as opened:
            assert len(opened.identity.disk_id) == 36
    except SwaptideError:
        pass


@EXAMPLES
@hypothesis.given(words=st.binary(min_size=512, max_size=512))
def test_words_of_a_state_file_can_be_told(tmp_path: pathlib.Path, words: bytes) -> None:
    """The daemon reads what a process it does not trust has written, and sends it on."""
    state = tmp_path / "x.state"
    identity = layout.IDENTITY.pack(layout.MAGIC, layout.FORMAT_VERSION, 2 << 20, 1 << 26, bytes(16), b"x", 0)
    state.write_bytes(identity.ljust(4096, b"\0") + (words * 8) * 15)
    with face.StateFace(state) as opened:
        opened.request_publish()
        told = {**opened.counters(), "ram_bytes": opened.ram_bytes(), "limits": opened.limits()}
        for name, histogram in opened.histograms().items():
            told[name] = (histogram.count, histogram.mean_seconds(), histogram.quantile_seconds(0.99))
        assert msgspec.json.encode(told)
