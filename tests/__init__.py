"""All tests; a package so that `tests.vm` can be imported from its siblings and scripts."""
