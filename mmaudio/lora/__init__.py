"""LoRA adapters: which layers, which kinds, how they are attached, saved, loaded and merged."""
