"""What the benchmarks share: servers and arms, requests, checks before a measurement, rows."""
