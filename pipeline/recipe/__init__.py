"""What a run is asked for; imports no torch."""
