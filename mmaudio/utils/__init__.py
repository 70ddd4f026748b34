"""Files, locks, subprocesses, progress bars and other helpers that know nothing of audio or video."""
