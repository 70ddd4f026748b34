"""Released weights: what they are, where they are, how they are fetched and checked."""
