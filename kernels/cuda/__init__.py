"""Kernels that only CUDA has: com.microsoft operators of ONNX Runtime's CUDA provider."""
