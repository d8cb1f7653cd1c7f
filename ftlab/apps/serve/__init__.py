"""The HTTP server: an OpenAI-compatible API over one model, for several people at once."""
