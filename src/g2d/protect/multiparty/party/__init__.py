"""One party's process: takes shares, agrees with the others, computes with SPU, answers in shares.

Runs in an environment of its own (`make smpc`), which has no torch; `engine` alone imports SPU, in
a child process that is killed when a session ends.
"""
