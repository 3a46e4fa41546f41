"""`pocketnest apple`: a run's Core ML packages in Core ML itself, on each compute unit of a Mac."""
