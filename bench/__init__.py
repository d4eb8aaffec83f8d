"""Side-by-side benchmarks against the peers; `make bench` runs them (docs/performance.md reads the results)."""
