"""What PocketNest takes where there is much of everything: one module a part, run by its name."""
