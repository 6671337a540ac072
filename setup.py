"""The metadata is in setup.cfg; here is only how to build without leaving anything behind.

setuptools keeps ``build/`` and puts whatever lies there into the next wheel, modules that were
deleted since included. Each build gets a fresh directory instead.
"""

import tempfile

from setuptools import setup
from setuptools.command.build import build

_directory = tempfile.TemporaryDirectory(prefix="twisted_paxos-build-")


class FreshBuild(build):
    """``build`` in a directory of its own, which goes away with the process."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = _directory.name


setup(cmdclass={"build": FreshBuild})
