"""`python -m benchmarks.robust`."""

from benchmarks.robust.run import main

if __name__ == "__main__":
    main()
