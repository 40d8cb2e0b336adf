"""Benchmarks: our figures beside a peer's or a physical limit's, measured in the same run."""
