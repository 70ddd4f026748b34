"""Evaluation of an adapter: base against adapted model on held-out videos."""
