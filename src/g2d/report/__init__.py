"""JSON to pages and pictures; knows no torch."""
