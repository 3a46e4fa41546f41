"""Files, locks, the store, processes and errors; knows no network."""
