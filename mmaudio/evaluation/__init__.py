"""Base against adapted model on held-out videos: sampling, decoding, comparing."""
