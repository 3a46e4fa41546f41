"""ResNeSt: the network, its branch form and its deploy form."""
