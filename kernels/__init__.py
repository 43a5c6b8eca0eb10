"""How each operator is realised on each target: one file a kernel, with what it matches, becomes and means.

base.py says what a kernel is, registry.py which ones a target has; README.md says where each file goes. Import
`tintype.kernels.registry` to lower a graph; it needs onnx_ir, so the runtime does that in a child process only.
This package imports nothing else of tintype, and within it:
    registry > cpu, cuda > portable > graph > base
"""
