"""Video and audio files: decoding, time stamps, resampling and muxing."""
