"""LoRA adapters: settings, target layers, kinds, files and merging."""
