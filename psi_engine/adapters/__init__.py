"""Other tools' files in and out, one module per tool.

``read(tool, *paths)`` gives :class:`~psi_engine.adapters.contents.Contents`, ``write(tool,
contents, folder)`` takes them, ``from_run(run)`` makes them of a run folder, and
:func:`psi_engine.adapters.into_run.import_files` makes a run folder of files.
"""

from psi_engine.adapters.contents import Contents, Description, Exemplars, ReadOptions, TopExamples
from psi_engine.adapters.from_run import from_run
from psi_engine.adapters.registry import TOOLS, read, write

__all__ = [
    "TOOLS",
    "Contents",
    "Description",
    "Exemplars",
    "ReadOptions",
    "TopExamples",
    "from_run",
    "read",
    "write",
]
