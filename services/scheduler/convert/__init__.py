"""Translates between protobuf messages and the domain, purely."""
