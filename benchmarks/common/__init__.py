"""What all benchmarks share: measures, the machine, places, tables."""
