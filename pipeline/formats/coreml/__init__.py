"""Core ML files."""
