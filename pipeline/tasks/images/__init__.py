"""Images: read, kept decoded, augmented, batched."""
