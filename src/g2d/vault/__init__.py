"""One folder that holds everything about one defended task; knows no torch."""
