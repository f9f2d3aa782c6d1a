"""One command in a process of its own, forked from one that has everything imported.

``runpy`` runs this file with the arguments of :func:`run` as ``command`` among its globals (see
``Forked`` in conftest.py).
"""

import os
from importlib import import_module
from pathlib import Path


def run(words, folder, environment, constants) -> None:
    """Run the command in its folder; what it prints goes to ``out-PID`` and ``err-PID`` there."""
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(Path(folder, f"{name}-{os.getpid()}"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, number)
    for (module, constant), value in constants.items():
        setattr(import_module(module), constant, value)
    import_module("oodflow.cli").main(words)


if __name__ == "__main__":
    run(**globals()["command"])
