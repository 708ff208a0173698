"""Options, where their values come from, and the configuration file.

    options        the one table: names, parsers, defaults, help
    settings       the layers (command line, -o, environment, file, defaults), and the frozen `Config`
    file           the TOML file: its profiles, and mistakes told by file, line and key
    directories    XDG directories, the home and the current directory, which may not be there
    permissions    whose files are believed

Owns: what an option is called and how its text is read, the same wherever it was given. A `Config` does not
change; a running mount reads a new one on SIGHUP. There are no locks, and no threads.
"""
