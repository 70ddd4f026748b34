"""Base against adapted on held-out videos: metrics, statistics and the report."""
