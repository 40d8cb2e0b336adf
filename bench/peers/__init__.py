"""The peers the benchmarks stand beside, each in an environment of its own."""
