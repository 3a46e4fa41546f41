"""Benchmarks: the files of finished runs beside what users would make without PocketNest."""
