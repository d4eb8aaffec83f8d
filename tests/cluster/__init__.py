"""A real Ceph cluster below a disk's spill: `make cluster-test`."""
