"""`pocketnest predict`: classify images with the float network and every exported file."""
