"""Other services, behind the protocols the use cases speak."""
