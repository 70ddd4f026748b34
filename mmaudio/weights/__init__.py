"""Released weights files: registry, local store, downloads and loading."""
