"""What jobs do with a disk that is handed over together with its store, at either end (cache/handing.py)."""

from typing import Any

from swaptide.cache import adopting, engine, geometry, keys, pairs, statefile
from swaptide.cache.errors import SetupError


class Handed:
    """The part of the disk for that.  `is_private`: whether nobody else hears what comes."""

    is_private = False

    def __init__(self, disk: engine.Engine) -> None:
        self._engine = disk

    def lead(self, *, ebbing: bool, held: bool) -> None:
        """Have as little in RAM as may be, or stand still, for as long as this process lives."""
        self._engine.governor.lead(ebbing=ebbing, held=held)

    def stands_still(self) -> bool:
        """Whether nothing changes or moves any more."""
        return self._engine.governor.stands_still()

    def excess_bytes(self) -> int:
        """How much is in RAM beyond what may be."""
        return self._engine.governor.excess_bytes()

    def hush(self, hushed: bool) -> None:
        """Show the store no life from now on, or at once; raises SetupError where a write of it hangs."""
        from swaptide.cache import exports

        spill = self._engine.spill
        for each in spill.parts if isinstance(spill, pairs.Pair) else (spill,):
            if not isinstance(each, exports.Export):
                raise SetupError(f"spill={each.place}: only NBD exports can be handed over")
            each.hush(hushed)

    def reclaim(self, spill: str) -> bool:
        """Make every copy of the disk worthless; False where one has its store by now.  Raises SetupError."""
        from swaptide.cache import marks

        try:
            marks.retake(spill, self._engine.identity.disk_id)
        except marks.TakenError:
            return False
        return True

    def let_go(self) -> None:
        """Never write to the store again, nor read."""
        self._engine.spill.wind_up()

    def state(self) -> tuple[int, geometry.Geometry]:
        """The state file, and how it is laid out."""
        return self._engine.state.fd, self._engine.state.shape

    def own_state(self) -> statefile.StateFile:
        """The state file."""
        return self._engine.state

    def offer(self) -> dict[str, Any]:
        """What the disk says of itself to who takes it in."""
        return adopting.offer_of(self._engine.identity, self._engine.seal_seed)

    def key(self) -> bytearray | None:
        """What the keyring has of the disk; None where it is not encrypted.  Raises SetupError."""
        identity = self._engine.identity
        return keys.read(identity.disk_id) if identity.encrypted else None

    def forget_key(self) -> None:
        """Erase that."""
        if self._engine.identity.encrypted:
            keys.erase(self._engine.identity.disk_id)

    def marks(self, offer: adopting.Offer) -> list[str]:
        """What tells its stores from what they may be later; raises SwaptideError where one is not there."""
        from swaptide.cache import marks  # libnbd, which a disk on a file does without

        shape = geometry.of_size(offer.size_bytes, offer.slots)
        return marks.seen(offer.spill, offer.origin, shape)
