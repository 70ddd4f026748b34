"""The frozen encoders and the audio codec, a file each, and the extraction that runs them over clips."""
