"""The lanes of ARM64 processors, emulated: whether a file answers there as here."""
