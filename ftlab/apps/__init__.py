"""User interfaces: lessons, command line, panels, server."""
