"""`pocketnest inspect`: list the layers of a network, before and after."""
