"""The only SQL of Connections, one module per noun. The use case opens the transaction."""
