"""The ledger of reservations: oldest first, never more than was reserved, and what a book remembers."""

import pathlib

import hypothesis
import pytest
from hypothesis import strategies

from swaptide.balloon import reservations
from swaptide.balloon.reservations import Book, Ledger, Reservation
from swaptide.cache.errors import SetupError, UsageError

GIB = 1 << 30


def new(id: str, size: int, at: float = 0.0, hold: float = 60.0) -> Reservation:
    return Reservation(id, size, size, at, at + hold)


def ledger(*sizes: int, used: int = 0) -> Ledger:
    made = Ledger()
    for index, size in enumerate(sizes):
        made = reservations.grant(made, new(f"r{index}", size), used)
    return made


def test_growth_takes_from_the_oldest_first() -> None:
    made = ledger(3, 5, 2, used=100)
    expected = {100: (3, 5, 2), 102: (1, 5, 2), 104: (0, 4, 2), 109: (0, 0, 1), 500: (0, 0, 0)}
    assert {used: reservations.left_bytes(made, used) for used in expected} == expected
    assert reservations.left_bytes(made, None) == (3, 5, 2)
    assert reservations.left_bytes(Ledger(), 7) == ()


def test_what_is_given_back_returns_but_never_more_than_was_reserved() -> None:
    made = ledger(3, 5, used=100)
    assert reservations.left_bytes(made, 50) == (3, 5)
    later = reservations.grant(made, new("x", 4), 106)  # settles: 0 and 2 are left
    assert reservations.left_bytes(later, 106) == (0, 2, 4)
    assert reservations.left_bytes(later, 104) == (0, 4, 4)
    assert reservations.left_bytes(later, 100) == (3, 5, 4)


def test_use_counts_from_the_grant_on() -> None:
    made = reservations.grant(ledger(4, used=100), new("x", 4), 103)
    assert reservations.left_bytes(made, 103) == (1, 4)
    assert reservations.left_bytes(made, 105) == (0, 3)


def test_release_leaves_the_others_as_they_are() -> None:
    made = ledger(3, 5, used=100)
    after = reservations.release(made, "r0", 102)
    assert [entry.id for entry in after.entries] == ["r1"]
    assert reservations.left_bytes(after, 102) == (5,)
    assert reservations.release(after, "r1", 102) == Ledger()
    with pytest.raises(UsageError, match="r1"):
        reservations.release(after, "r0", 102)
    with pytest.raises(UsageError, match="none"):
        reservations.release(Ledger(), "r0", None)


def test_expiry() -> None:
    made = reservations.grant(ledger(3, used=0), new("late", 5, at=10.0, hold=100.0), 0)
    assert reservations.advance(made, 59.9, 0) is made
    assert [entry.id for entry in reservations.advance(made, 60.0, 0).entries] == ["late"]
    assert reservations.advance(made, 110.0, None) == Ledger()


def test_what_is_used_up_for_a_while_is_done_with() -> None:
    made = ledger(3, 5, used=100)
    first = reservations.advance(made, 1.0, 103)
    assert [entry.empty_since for entry in first.entries] == [1.0, None]
    assert reservations.advance(first, 2.9, 103) is first
    back = reservations.advance(first, 2.9, 102)
    assert [entry.empty_since for entry in back.entries] == [None, None]
    gone = reservations.advance(first, 3.0, 104)
    assert [entry.id for entry in gone.entries] == ["r1"]
    assert reservations.left_bytes(gone, 104) == (4,)


@pytest.mark.parametrize(
    ("size", "rest"),
    [(8 * GIB, GIB // 4), (GIB, GIB // 32), (256 << 20, 16 << 20), (8 << 20, 2 << 20), (3, 0)],
)
def test_next_to_nothing_is_nothing(size: int, rest: int) -> None:
    made = ledger(size, used=0)
    assert reservations.advance(made, 1.0, size - rest - 1) is made
    assert reservations.advance(made, 1.0, size - rest).entries[0].empty_since == 1.0


OPERATIONS = strategies.lists(
    strategies.tuples(
        strategies.sampled_from(("grant", "release", "advance", "look")),
        strategies.integers(0, 1 << 40),
        strategies.integers(1, 1 << 38),
        strategies.floats(0, 30),
    ),
    max_size=40,
)


@hypothesis.given(OPERATIONS)
def test_a_ledger_is_never_out_of_its_bounds(operations: list[tuple[str, int, int, float]]) -> None:
    made, now = Ledger(), 0.0
    for number, (what, used, size, seconds) in enumerate(operations):
        now += seconds
        held = reservations.held_bytes(made, used)
        if what == "grant":
            made = reservations.grant(made, new(f"r{number}", size, now), used)
            assert reservations.held_bytes(made, used) == held + size
        elif what == "release" and made.entries:
            made = reservations.release(made, made.entries[size % len(made.entries)].id, used)
            assert reservations.held_bytes(made, used) <= held
        elif what == "advance":
            made = reservations.advance(made, now, used)
            assert reservations.held_bytes(made, used) <= held
            assert all(now < entry.expires_at for entry in made.entries)
        left = reservations.left_bytes(made, used)
        for rest, entry in zip(left, made.entries, strict=True):
            assert 0 <= rest <= entry.size_bytes
        # More use never leaves more.
        assert reservations.held_bytes(made, used + size) <= sum(left)
        assert (made.mark_bytes is None) is (not made.entries)


@pytest.fixture
def boot(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "boot_id"
    path.write_text("one\n")
    return path


def test_a_book_is_taken_up_by_the_next_daemon(tmp_path: pathlib.Path, boot: pathlib.Path) -> None:
    path = tmp_path / "reservations.json"
    book = Book(path, boot)
    assert book.ledger == Ledger() and not path.exists()
    book.put(ledger(3, 5, used=100))
    assert Book(path, boot).ledger == book.ledger
    assert path.stat().st_mode & 0o777 == 0o600
    book.put(reservations.advance(book.ledger, 1.0, 103))
    assert [entry.empty_since for entry in Book(path, boot).ledger.entries] == [None, None]
    book.put(Ledger())
    assert not path.exists()
    assert sorted(tmp_path.iterdir()) == [boot]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        '{"boot_id":"one","ledger":{"entries":[{"id":"a","size_bytes":1,"left_bytes":2,"granted_at":0,"expires_at":9}]}}',
        '{"boot_id":"one","ledger":{"entries":[{"id":"a","size_bytes":1,"left_bytes":-1,"granted_at":0,"expires_at":9}]}}',
    ],
)
def test_a_damaged_book_is_dropped(
    tmp_path: pathlib.Path, boot: pathlib.Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "book").write_text(text)
    assert Book(tmp_path / "book", boot).ledger == Ledger()
    assert len(caplog.records) == 1


def test_a_book_of_another_boot_is_dropped(tmp_path: pathlib.Path, boot: pathlib.Path) -> None:
    Book(tmp_path / "book", boot).put(ledger(3))
    boot.write_text("two\n")
    assert Book(tmp_path / "book", boot).ledger == Ledger()


def test_a_book_that_cannot_be_written(tmp_path: pathlib.Path, boot: pathlib.Path) -> None:
    """What is new is refused; what goes, goes all the same."""
    directory = tmp_path / "there"
    directory.mkdir()
    book = Book(directory / "book", boot)
    book.put(ledger(3))
    before = book.ledger
    (directory / "book").unlink()
    directory.rmdir()
    with pytest.raises(SetupError, match="book cannot be written"):
        book.put(reservations.grant(before, new("x", 1), 0))
    assert book.ledger == before
    book.put(reservations.release(before, "r0", 0))
    assert book.ledger == Ledger()
