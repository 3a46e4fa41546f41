"""FastestDet, a detector of one scale."""
