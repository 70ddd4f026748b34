"""Benchmarks behind the README's tables, run from the checkout: `python -m benchmarks.training`."""
