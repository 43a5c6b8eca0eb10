"""Kernels for several targets, or for providers that want a plainer graph: DirectML, WebGPU, OpenVINO and the like."""
