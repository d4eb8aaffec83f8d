"""What lies in the spill file: sealed with the disk's key, every write under a number of its own."""

import contextlib
import os
import pathlib
import random
import re
import signal
import struct
from collections.abc import Iterator

import nbd
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from swaptide.cache import geometry, keys, layout
from tests.real import server

MIB = 1 << 20
SIZE = 64 * MIB
MARK = b"what the guest wrote, readable for everybody who has the disk. "
STRIDE = geometry.PAGE_BYTES + geometry.TAG_BYTES
FOOTER = struct.Struct("<8sQII")
FOOTER_OFFSET = geometry.CHUNKS_PER_SEGMENT * STRIDE
RMAP_CHUNK = geometry.CHUNKS_PER_SEGMENT - 1
NO_PAGE = 0xFFFFFFFF


def page_of(number: int) -> bytes:
    """A page full of the mark, no two of them alike."""
    return (struct.pack("<Q", number) + MARK * 66)[: geometry.PAGE_BYTES]


def write_all(disk: server.Server) -> None:
    handle = nbd.NBD()
    handle.connect_uri(disk.uri)
    for start in range(0, SIZE, MIB):
        pages = range(start // 4096, (start + MIB) // 4096)
        handle.pwrite(b"".join(map(page_of, pages)), start)
    handle.shutdown()


def check_all(disk: server.Server) -> None:
    handle = nbd.NBD()
    handle.connect_uri(disk.uri)
    for start in range(0, SIZE, MIB):
        pages = range(start // 4096, (start + MIB) // 4096)
        assert handle.pread(MIB, start) == b"".join(map(page_of, pages)), start
    handle.shutdown()


def squeeze(disk: server.Server) -> None:
    with disk.face() as face:
        floor = face.limits().floor_bytes
        face.set_limits(cap_bytes=floor, target_bytes=floor)
        server.wait_until_holds(face, floor)


def images(spill: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """Slot and image of every segment in the spill file."""
    with open(spill, "rb") as file:
        file.seek(geometry.SPILL_HEADER_BYTES)
        slot = 0
        while image := file.read(geometry.SEGMENT_BYTES):
            if FOOTER.unpack_from(image, FOOTER_OFFSET)[0] == b"tideseg3":
                yield slot, image
            slot += 1


def place(disk_id: str, write: int, slot: int, index: int, page: int) -> bytes:
    seed = int(disk_id.replace("-", ""), 16) & 0xFFFFFFFFFFFFFFFF
    return struct.pack("<QQQQQ", seed, write, slot, index, page)


def names_in_keyring() -> set[str]:
    """Our keys; one that was just erased may still show."""
    return set(re.findall(r"swaptide:[0-9a-f-]+", pathlib.Path("/proc/keys").read_text()))


@pytest.fixture
def spill(tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path("/var/tmp") / f"swaptide-test-{os.getpid()}-{tmp_path.name}.spill"


@pytest.fixture(autouse=True)
def _cleaned(spill: pathlib.Path) -> Iterator[None]:
    yield
    spill.unlink(missing_ok=True)


def test_the_spill_file_shows_nothing(tmp_path: pathlib.Path, spill: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="96M", spill=str(spill)) as disk:
        write_all(disk)
        squeeze(disk)
        content = spill.read_bytes()
        assert len(list(images(spill))) > 10
        assert MARK not in content and MARK[:16] not in content
        check_all(disk)


def test_without_encryption_it_shows_everything(tmp_path: pathlib.Path, spill: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="96M", spill=str(spill), encrypt="no") as disk:
        write_all(disk)
        squeeze(disk)
        assert spill.read_bytes().count(MARK) > 100_000
        assert not disk.face().identity.encrypted
        check_all(disk)
        assert not keys.erase(disk.face().identity.disk_id)


def test_another_implementation_opens_what_was_sealed(tmp_path: pathlib.Path, spill: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="96M", spill=str(spill)) as disk:
        write_all(disk)
        squeeze(disk)
        disk_id = disk.face().identity.disk_id
        cipher = AESGCM(bytes(keys.find(disk_id)))
        draw = random.Random(1)
        for slot, image in images(spill):
            _, write, _, count = FOOTER.unpack_from(image, FOOTER_OFFSET)
            nonce = struct.pack("<QI", write, RMAP_CHUNK)
            sealed = image[RMAP_CHUNK * STRIDE : FOOTER_OFFSET]
            raw = cipher.decrypt(nonce, sealed, place(disk_id, write, slot, RMAP_CHUNK, NO_PAGE))
            rmap = struct.unpack(f"<{count}I", raw[-4 * count :])[::-1]
            index = draw.randrange(count)
            piece = image[index * STRIDE : (index + 1) * STRIDE]
            nonce = struct.pack("<QI", write, index)
            opened = cipher.decrypt(nonce, piece, place(disk_id, write, slot, index, rmap[index]))
            assert opened == page_of(rmap[index])
            # Anywhere else it is not accepted.
            page = rmap[index]
            for by in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
                wrong = place(disk_id, write, slot + by[0], index + by[1], page + by[2])
                with pytest.raises(InvalidTag):
                    cipher.decrypt(nonce, piece, wrong)


def test_no_number_is_used_twice(tmp_path: pathlib.Path, spill: pathlib.Path) -> None:
    """Writes, overwrites, failed writes and kills: every image on disk has a number of its own."""
    seen: dict[int, bytes] = {}
    clock = layout.COUNTERS.index("write_clock")
    with server.serving(tmp_path, size="64M", ram="20M", spill=str(spill)) as disk:
        last = 0
        for round_number in range(4):
            write_all(disk)
            disk.stop(signal.SIGKILL)
            for _, image in images(spill):
                number = FOOTER.unpack_from(image, FOOTER_OFFSET)[1]
                assert seen.setdefault(number, image) == image
            with disk.face() as face:
                now = list(face.counters().values())[clock]
            assert now > last and now >= max(seen)
            last = now
            disk.start()
            if round_number == 2:
                check_all(disk)
        assert len(seen) > 60


def numbers(spill: pathlib.Path) -> dict[int, bytes]:
    """The images in the spill file by the number of their write."""
    return {FOOTER.unpack_from(image, FOOTER_OFFSET)[1]: image for _, image in images(spill)}


def copy_sparse(source: pathlib.Path, to: pathlib.Path) -> None:
    """Copy a file with its holes: table pieces that are there by mistake would be refused."""
    with open(source, "rb") as file, open(to, "wb") as other:
        size, at = os.fstat(file.fileno()).st_size, 0
        other.truncate(size)
        with contextlib.suppress(OSError):  # no data behind the last
            while at < size:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                while at < end:
                    at += os.pwrite(other.fileno(), os.pread(file.fileno(), min(MIB, end - at), at), at)


def test_a_state_file_put_back_uses_no_number_again(tmp_path: pathlib.Path, spill: pathlib.Path) -> None:
    """One nonce for two contents would show both of them to whoever has both."""
    seen = []
    with server.serving(tmp_path, size="64M", ram="96M", spill=str(spill)) as disk:
        assert disk.state is not None
        write_all(disk)
        disk.stop(signal.SIGKILL)
        kept = disk.state.with_suffix(".kept")
        copy_sparse(disk.state, kept)
        for _ in range(2):
            disk.start()
            write_all(disk)
            squeeze(disk)
            disk.stop(signal.SIGKILL)
            seen.append(numbers(spill))
            kept.replace(disk.state)
            copy_sparse(disk.state, kept)
        disk.start()
        kept.unlink()
    assert all(len(images) > 10 for images in seen)
    # What one round left where the next wrote nothing is the same image still.
    assert all(seen[0][number] == seen[1][number] for number in seen[0].keys() & seen[1].keys())
    assert len(seen[0].keys() & seen[1].keys()) < len(seen[0])


def test_the_key_survives_a_kill_and_nothing_else_serves(tmp_path: pathlib.Path, spill: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="96M", spill=str(spill)) as disk:
        write_all(disk)
        squeeze(disk)
        disk.stop(signal.SIGKILL)
        disk.start()
        check_all(disk)
        disk_id = disk.face().identity.disk_id
        disk.stop()
        assert keys.erase(disk_id)
        before = disk.state.read_bytes() if disk.state else b""
        with pytest.raises(RuntimeError, match=f"the key of disk {disk_id} is not in the keyring"):
            disk.start()
        assert disk.state is not None and disk.state.read_bytes() == before


def test_a_disk_keeps_to_its_encryption(tmp_path: pathlib.Path, spill: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="96M", spill=str(spill)) as disk:
        disk.stop()
        disk.parameters["encrypt"] = "no"
        with pytest.raises(RuntimeError, match=re.escape("encrypt=no: the disk in")):
            disk.start()
        disk.parameters["encrypt"] = "yes"
        disk.start()
        disk.stop()


def test_an_unnamed_disk_leaves_no_key(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, named_state=False, size="64M", ram="20M") as disk:
        write_all(disk)
        check_all(disk)
        found = re.search(r"serving id=([0-9a-f-]+)", disk.log.read_text())
        assert found is not None
        assert f"swaptide:{found[1]}" not in names_in_keyring()
