"""Codes that publish networks; what other tools are given to start from."""

from __future__ import annotations

PAPER = "paper"
"""The code of the paper, or the network's only one."""

TIMM = "timm"
