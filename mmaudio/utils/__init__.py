"""Files, locks, subprocesses, progress bars and other helpers that are independent of audio and video."""
