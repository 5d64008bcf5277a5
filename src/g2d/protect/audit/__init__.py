"""The audit log: what happened, chained by hashes and signed at intervals. Knows no torch."""
