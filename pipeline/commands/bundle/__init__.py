"""What app teams are handed: one archive per target, checked against its own golden vectors."""
