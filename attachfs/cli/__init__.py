"""Commands, what they print, and the helper for mount(8)."""
