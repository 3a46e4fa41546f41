"""The soak: faults and rubbish by the thousand, on the real command line. `nox -s soak` runs it."""
