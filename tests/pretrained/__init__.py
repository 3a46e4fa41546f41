"""Pretrained networks, quantized without training and measured beside other tools' files."""
