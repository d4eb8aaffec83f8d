"""One lane of a spill store over NBD: nothing for Python; see wire.pyx."""
