"""Residual networks of shifts and 1 x 1 convolutions."""
