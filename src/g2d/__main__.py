"""`python -m g2d` is `g2d`. Guarded: spawned workers import this module under another name."""

from g2d.cli.main import main

if __name__ == "__main__":
    main()
