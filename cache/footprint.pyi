"""RAM slots made and given back: nothing for Python; see footprint.pyx."""
