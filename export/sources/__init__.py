"""Forms in which people publish a checkpoint: what each is made of, without reading a weight.

Each module here works on names and shapes. torch reads the weights later, in `export.checkpoint`.
"""
