"""The file formats. Each module has write, inspect, open_file, trace, cannot_time and evaluated."""
