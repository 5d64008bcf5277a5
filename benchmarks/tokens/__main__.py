"""Run the benchmark: `python -m benchmarks.tokens --help`."""

from benchmarks.tokens.run import main

if __name__ == "__main__":
    main()
