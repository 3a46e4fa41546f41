"""ShuffleNet of the first version."""
