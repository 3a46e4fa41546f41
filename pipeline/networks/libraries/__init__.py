"""Networks that others wrote: torchvision's, timm's and the user's own."""
