"""What the tables of docs/benchmarks.md are measured with: `python -m benchmarks.training`, in the checkout."""
