"""How each operator is realised on each target: one file a kernel, with what it matches, becomes and means.

Import `tintype.kernels.registry` to lower a graph; it needs onnx_ir, so the runtime does that in a child process only.
This package imports nothing else of tintype.
"""
