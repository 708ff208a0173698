"""Paths, nodes, attributes and names, as if there were no kernel."""
