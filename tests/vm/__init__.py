"""Guests under QEMU: what boots them, what serves them, and the scenarios they go through."""
