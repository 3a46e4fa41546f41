"""The file formats. Each module has write, inspect, open_file, cannot_run and RUNTIME."""
