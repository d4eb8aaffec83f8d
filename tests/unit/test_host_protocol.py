"""What goes over the control socket comes back the same, and nothing else is taken."""

import msgspec
import pytest

from swaptide.cache import errors
from swaptide.host import protocol

REQUESTS = [
    protocol.Add("g1", 1 << 30, 1 << 28, swap_label="x", socket_owner="u", force=True),
    protocol.List(),
    protocol.Look(),
    protocol.Show("g1"),
    protocol.Set("g1", ram_bytes=1),
    protocol.Clear("g1", force=True),
    protocol.Remove("g1"),
    protocol.GuestAdd("vm", "/qmp", 1 << 30, 1 << 31, ["g1"], clear_on_reset=True),
    protocol.GuestList(),
    protocol.GuestRemove("vm"),
    protocol.Attach("g1", qmp="/qmp", bus="port1", deadline_seconds=1.5),
    protocol.Detach("g1", guest="vm", force=True),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_round_trip(request_: protocol.Request) -> None:
    line = msgspec.json.encode(request_)
    assert msgspec.json.decode(line, type=protocol.Request) == request_


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b'{"type":"disk-frob"}',
        b'{"type":"disk-ls","extra":1}',
        b'{"type":"disk-show"}',
        b'{"type":"disk-set","name":"g1","weight":0}',
        b'{"type":"disk-add","name":"g1","size_bytes":"4G","ram_bytes":1}',
        b'{"type":"disk-set","name":"g1","ram_bytes":18446744073709551616}',
        b'{"type":"disk-set","name":"g1","floor_bytes":70368744177665}',
        b'{"type":"disk-set","name":"g1","ram_bytes":-1}',
        b'{"type":"guest-add","name":"vm"}',
        b'{"type":"guest-add","name":"vm","qmp":"/q","min_bytes":0}',
        b'{"type":"guest-add","name":"vm","qmp":"/q","disks":"g1"}',
        b'{"type":"attach","name":"g1","deadline_seconds":0}',
    ],
)
def test_nonsense_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(line, type=protocol.Request)


@pytest.mark.parametrize(
    "kind", [errors.UsageError, errors.SetupError, errors.StateError, errors.BusyError, errors.SwaptideError]
)
def test_errors_keep_their_class(kind: type[errors.SwaptideError]) -> None:
    line = msgspec.json.encode(protocol.failure_of(kind("why")))
    back = protocol.error_of(msgspec.json.decode(line, type=protocol.Failure))
    assert (type(back), str(back)) == (kind, "why")
