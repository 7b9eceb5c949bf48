"""Benchmarks: each claim of speed as a module to run again, always beside a baseline from the same minute."""
