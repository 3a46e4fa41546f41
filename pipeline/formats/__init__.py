"""The file formats: one folder each, and an entry of `FORMATS` in formats.py."""
