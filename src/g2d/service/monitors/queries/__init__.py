"""What queries give away of an attack: near-duplicates, marks, descents, boundaries, copying.

Pure numpy. `fingerprints` says what an input is known by, `windows` what was seen lately,
`evidence` how much is enough, `marks` how an input differs from those before it, `trails` what
becomes of the variants of one input, `copying` how far apart a client's inputs lie; `monitor` puts
them together.
"""
