"""J, F and the benchmarks' rules."""
