"""The built-in rewards, one module each, found like any other plugin."""
