"""A Mac, this one or another over ssh: Core ML packages in Core ML itself, on each compute unit."""
