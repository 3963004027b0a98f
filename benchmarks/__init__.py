"""Measurements behind every claim; run as `python -m benchmarks.NAME`. Results go to benchmarks/results/."""
