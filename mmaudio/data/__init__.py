"""Video files, the table of clips and the store of extracted features."""
