"""`pocketnest debug`: compare a file with its program and the float network, layer by layer."""
