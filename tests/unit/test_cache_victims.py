"""Which segments are cleaned, and in which order: one walk finds several, which are cleaned one by one."""

from swaptide.cache import geometry
from tests.unit import hands
from tests.unit.hands import PAGE, PIECES, noise, text

BELOW = geometry.CONTENT_BYTES
# More than one walk keeps.
MANY = 20
SIZE = 96 << 20


def fill(disks: hands.Maker, counts: list[int]) -> tuple[hands.Hand, list[int]]:
    """A disk with a full segment for each of `counts`, of whose pages that many are gone; their numbers."""
    hand = disks(SIZE)
    hand.write(range(len(counts) * PIECES), noise)
    numbers = [hand.home(at * PIECES).segment for at in range(len(counts))]
    for at, count in enumerate(counts):
        trim(hand, at, count)
    return hand, numbers


def trim(hand: hands.Hand, at: int, count: int) -> None:
    """Have `count` pages of the segment that was filled as the `at`-th be gone: others hold nothing."""
    for page in range(at * PIECES, at * PIECES + count):
        if page in hand.model:
            hand.put(page * PAGE, bytes(PAGE))


def clean(hand: hands.Hand, most: int = 1, by_age: bool = False) -> int:
    hand.room(8)
    return hand.made.moves.clean(False, BELOW, most, by_age)


def test_the_emptiest_come_first_and_none_is_forgotten(disks: hands.Maker) -> None:
    counts = [20 + 13 * at % 300 for at in range(MANY)]
    hand, numbers = fill(disks, counts)
    cleaned = []
    while clean(hand) == 1:
        left = [at for at in range(MANY) if hand.home(at * PIECES + 400).segment == numbers[at]]
        cleaned += [at for at in range(MANY) if at not in left and at not in cleaned]
    assert sorted(cleaned) == list(range(MANY))
    assert [counts[at] for at in cleaned[:16]] == sorted(counts, reverse=True)[:16]
    hand.check()


def test_one_that_died_or_moved_meanwhile_is_passed_over(disks: hands.Maker) -> None:
    hand, numbers = fill(disks, [400, 300, 200, 100])
    assert clean(hand) == 1
    trim(hand, 1, PIECES)  # the next one: its number may be another segment's by now
    hand.pack(keep=1)  # and another
    hand.write(range(8 * PIECES, 12 * PIECES), text)
    while clean(hand) == 1:
        pass
    hand.check()
    assert clean(hand) == 0


def test_what_is_asked_for_is_what_is_found(disks: hands.Maker) -> None:
    """A list that was made for the disk, or for another threshold, is not gone on with."""
    hand, numbers = fill(disks, [400, 300, 200, 100])
    hand.ebb()
    hand.write(range(4 * PIECES, 6 * PIECES), noise)
    trim(hand, 4, 250)
    hand.room(8)
    assert hand.made.moves.clean(True, BELOW, 1, False) == 1
    assert hand.home(PIECES - 1).segment != numbers[0]
    assert hand.made.moves.clean(False, BELOW // 8, 1, False) == 0
    there = hand.home(5 * PIECES - 1).segment
    assert hand.made.moves.clean(False, BELOW, 1, False) == 1
    assert hand.home(5 * PIECES - 1).segment != there and hand.home(2 * PIECES - 1).segment == numbers[1]
    hand.check()


def test_who_needs_a_slot_soonest_does_not_go_on_with_a_list_by_age(disks: hands.Maker) -> None:
    hand, numbers = fill(disks, [60, 60, *[0] * 38, 400])
    last = len(numbers) - 1

    def moved() -> set[int]:
        homes = {at: hand.home((at + 1) * PIECES - 1).segment for at in (0, 1, last)}
        return {at for at, segment in homes.items() if segment != numbers[at]}

    assert clean(hand, by_age=True) == 1
    assert len(moved() & {0, 1}) == len(moved()) == 1
    assert clean(hand) == 1
    assert len(moved()) == 2 and last in moved()
    hand.check()
