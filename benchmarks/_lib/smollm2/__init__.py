"""The parts of benchmarks/smollm2.py."""
