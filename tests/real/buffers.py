"""Buffers for libnbd's asynchronous calls, used again and again.

libnbd 1.14's Python binding keeps a reference to every buffer that it was given, for ever: a test that sends
a million requests would hold all of them.  What is kept here is a view of a few bytes; the memory goes round.
"""


class Buffers:
    """As many buffers of `size_bytes` as are in use at one time."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._spare: list[bytearray] = []

    def take(self, count: int) -> memoryview:
        """A buffer of `count` bytes, nobody else's until it is given back."""
        memory = self._spare.pop() if self._spare else bytearray(self._size_bytes)
        return memoryview(memory)[:count]

    def filled(self, data: "bytes | bytearray") -> memoryview:
        """A buffer that holds `data`."""
        view = self.take(len(data))
        view[:] = data
        return view

    def give(self, view: memoryview) -> None:
        """Give a buffer back whose request was answered."""
        assert isinstance(view.obj, bytearray)
        self._spare.append(view.obj)
