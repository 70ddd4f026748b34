"""Audio and audio-visual metrics, one registry entry each, and their statistics."""
