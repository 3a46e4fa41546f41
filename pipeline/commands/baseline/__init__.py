"""`pocketnest baseline`: measure the float network on this machine, and keep it for reports."""
