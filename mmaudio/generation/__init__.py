"""Audio generation for videos and prompts: `python -m mmaudio.generation`."""
