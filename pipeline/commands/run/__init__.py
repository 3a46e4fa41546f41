"""`pocketnest run`: run recipes, and show what came out."""
