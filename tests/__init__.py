"""The tests; they mirror the package.

``trial tests`` imports by name and does not look in the current directory, so an installation
from a checkout installs the tests too. Started in a checkout, they run from there all the same:
the files that were just edited, with the documents beside them.
"""

from pathlib import Path

_here = Path.cwd() / "tests"
if (_here / "__init__.py").is_file() and (_here.parent / "twisted_paxos").is_dir():
    __path__ = [str(_here)]
