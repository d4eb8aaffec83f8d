"""The host daemon and its command line."""
