"""Video and audio files: frames, sound, time stamps and muxing."""
