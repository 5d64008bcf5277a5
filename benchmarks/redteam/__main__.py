"""`python -m benchmarks.redteam`."""

from benchmarks.redteam.run import main

if __name__ == "__main__":
    main()
