"""What a state file may say; see inspection.pyx."""

cdef enum:
    # No clock gets here by itself.
    CLOCK_LIMIT = 0x4000000000000000
