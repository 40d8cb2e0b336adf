"""The providers that can be connected to: one file each, listed in the catalogue."""
