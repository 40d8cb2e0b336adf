"""The running stack from outside; a package, so that a fixture can end with it."""
