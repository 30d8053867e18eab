"""Benchmarks of a running server, one question each."""
