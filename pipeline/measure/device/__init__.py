"""What files do on a real device, as one record whatever measured it."""
