"""Grids, quantization-aware training and the quantized program."""
