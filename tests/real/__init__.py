"""Tests against the real nbdkit, over real sockets."""
