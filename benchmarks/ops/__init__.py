"""Benchmarks of single kernels, without a server."""
