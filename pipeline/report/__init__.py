"""The report of a run: its rendering for people and its files."""
