"""Kernels that only the processor has, and what several of them share."""
