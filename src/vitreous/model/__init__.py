"""The network. Read `vit.py` beside the paper; `variants.py` is the table of named sizes."""
