"""Training of the embedded base `tiny_16k` from nothing: one file per stage, run by `training/pretrain_tiny.py`.

The data are clips of a synthetic world (`mmaudio.synthetic`). A shard holds 50 of them. Stills are a clip's frames at
8 fps (for CLIP), frames those at 25 fps (for the sync encoder).
"""
