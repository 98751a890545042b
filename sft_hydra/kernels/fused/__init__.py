"""Fused operations as Triton kernels."""
