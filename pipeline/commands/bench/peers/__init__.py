"""The files that other tools make of the same trained float network, to stand beside ours."""
