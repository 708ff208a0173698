"""Commands, what they print, and the helper for mount(8).

    main           finds a command's module, runs it, turns failures into a sentence and an exit status
    arguments      what several commands take: paths, options of the configuration, and what completes them
    streams        standard streams as they are found; interruptible: Ctrl-C though a mount waits
    output         exit statuses, tables, JSON, and that nothing foreign reaches a terminal unescaped
    paths          files on a mount or not, and what is recorded of them

and a module for each command, with its click command as `command` and its work as `run`. It is imported once
it is called, and what is dear to import where it is used.

Owns: exit statuses, and every word that a person sees of a command. What a command finds out of a mount it
asks by paths and extended attributes, as any program could.

Threads. Work on a mount runs in a daemon thread (`interruptible`), and several files at once in more of them
(`parallel`), because nobody gets out of a system call on a mount that waits. The main thread awaits signals.
The only lock is the progress bar's.
"""
