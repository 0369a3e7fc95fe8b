"""The network: `vit.py` reads as the paper, `variants.py` is the table of named sizes."""
