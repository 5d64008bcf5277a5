"""`python -m g2d` is `g2d`, and takes the current directory off the path that `-m` puts it on.

Only after Python has looked for `g2d` itself, there first: where others may write into the current
directory, start `g2d`, or `python -P -m g2d`. Guarded: spawned workers import this module under
another name.
"""

if __name__ == "__main__":
    from g2d.core.search_path import leave_current_folder

    leave_current_folder(by_module=True)

    from g2d.cli.main import main

    main()
