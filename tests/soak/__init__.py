"""Long runs that look for what a user's input, a stop or a fault can break."""
