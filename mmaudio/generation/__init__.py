"""From conditions to a waveform, and from a waveform to a video with sound."""
