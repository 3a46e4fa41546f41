"""How alike and how fast a file is."""
