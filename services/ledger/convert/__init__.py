"""Translates between the contract's messages and the domain, one module per noun; no I/O."""
