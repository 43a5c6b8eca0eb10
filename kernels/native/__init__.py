"""Operators of our own on the processor: a library in C (`src/`), compiled with the wheel, and the kernels that use it.

It is absent without harm: a build then does with ONNX Runtime's operators what these would have done.
"""
