"""`pocketnest compare`: what changed between two runs, worst first."""
