"""The numbers of BENCHMARKS.md come from here."""
