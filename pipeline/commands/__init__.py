"""What each command takes and prints.

`__main__.COMMANDS` names every command once. Each is one `Command` (`command.py`): its help, its
examples, `add_arguments` and `run`, which gives the exit code. Where that stands:

    init.py, check.py, verify.py, gc.py      a command whose work is short, or lies further down
    <name>/command.py                        a command with work of its own, beside it:
    <name>/table.py                              what it prints
    <name>/*.py                                  what it computes

A file that holds a `Command` imports neither torch nor numpy nor rich until its `run` is called,
so that `--help` and completion answer at once. `arguments.py` has the types of arguments that
several commands take. `reference.py` is no command: `python -m pipeline.commands.reference` writes
what is kept of full runs beside the code.
"""
