"""What files answer and cost on emulated ARM64 processors, compared and recorded."""
