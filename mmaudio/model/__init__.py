"""The network, its training objective and its adapters: torch only, no configuration framework and no paths."""
