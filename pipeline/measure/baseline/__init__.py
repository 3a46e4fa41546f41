"""The float network as one machine runs it, kept for the reports of others."""
