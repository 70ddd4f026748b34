"""How the embedded base `tiny_16k` is trained from nothing, a stage per file; `training/pretrain_tiny.py` runs it."""
