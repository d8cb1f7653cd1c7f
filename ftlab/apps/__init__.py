"""What people touch: lessons, command line, panels, server."""
