"""The pipeline from a folder of videos to a report, and comparisons of training settings."""
