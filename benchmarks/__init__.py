"""Every number in README and docs: scripts that measure, raw JSON in results/, tables from it.

Run from the root of a checkout: `python -m benchmarks.robust`, `python -m benchmarks.tables`.
"""
