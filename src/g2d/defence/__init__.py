"""Propose, judge, keep: a defended task from end to end."""
