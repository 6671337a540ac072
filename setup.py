"""The metadata is in setup.cfg; here is only how to build without leaving anything behind.

setuptools keeps ``build/`` and puts whatever lies there into the next wheel, modules that were
deleted since included. Each build gets a fresh directory instead.
"""

import tempfile

from setuptools import Extension, setup
from setuptools.command.build import build

_directory = tempfile.TemporaryDirectory(prefix="twisted_paxos-build-")


class FreshBuild(build):
    """``build`` in a directory of its own, which goes away with the process."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = _directory.name


# Optional: without a compiler the same is done in Python, and a node takes more CPU.
DISK_QUEUE = Extension(
    "twisted_paxos.storage._diskqueue", ["twisted_paxos/storage/_diskqueue.c"], optional=True
)

setup(cmdclass={"build": FreshBuild}, ext_modules=[DISK_QUEUE])
