"""Where files run: on this host, and on what else can be asked to run them."""
