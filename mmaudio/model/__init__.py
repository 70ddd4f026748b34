"""The network and its training objective: torch only, no configuration framework and no paths."""
