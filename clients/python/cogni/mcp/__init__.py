"""MCP (https://modelcontextprotocol.io) as Connections and runners speak it: no I/O, no imports."""
