"""Channel pruning: groups of tied channels, what they matter, what they cost, which go."""
