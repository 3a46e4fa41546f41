"""What tests need made: each in one place, with one name."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The top of the repository."""
HOUR = 3600.0
"""For what hangs: the busiest machine does not come near it."""
