"""Options, where their values come from, and the configuration file."""
