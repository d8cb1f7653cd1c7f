"""The HTTP server: an OpenAI-compatible API over one model, for concurrent requests."""
