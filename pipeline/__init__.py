"""PocketNest: a trained ResNeSt, carried exactly and fast to phones."""
