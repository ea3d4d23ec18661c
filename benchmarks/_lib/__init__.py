"""What the benchmarks share: data, machine, workers in rounds, tables, RESULTS.md."""
