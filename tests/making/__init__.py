"""What tests need made: each in one place, with one name."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The top of the repository."""
