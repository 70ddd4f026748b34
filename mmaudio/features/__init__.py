"""The frozen encoders and the audio codec, one model per file, and the extraction of features with them."""
