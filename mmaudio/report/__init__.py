"""HTML report of an evaluation: verdict, clips, numbers, provenance."""
