"""The mount process: puts the parts together, runs them, ends them; signals, log, service manager."""
