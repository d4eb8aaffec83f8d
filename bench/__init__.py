"""Side-by-side benchmarks against the peers: `make bench` (docs/performance.md reads the results)."""
