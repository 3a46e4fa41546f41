"""What each command takes and prints."""
