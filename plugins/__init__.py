"""The rewards that come with dpok, one module each, found like any other plugin."""
