"""One page moved to another segment: nothing for Python; see relocate.pyx."""
