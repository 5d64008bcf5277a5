"""Labels that come late: whether what is served is still as accurate as its gates said.

`bound` is the test, `log` keeps what came, `judge` puts them together; HTTP is not here.
"""
