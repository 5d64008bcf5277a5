"""Whether what is asked, or how it is answered, is still what it was.

`figures` makes numbers of a request, `labels` and `streams` test them, `monitor` raises alarms.
"""
