"""Networks that give logits for every place of an image, on any backbone."""
