"""What each process of test_chaos.py does: a command line in a folder, told to a file.

``FOLDER``, ``ARGUMENTS`` and ``TOLD`` are given. It is a fork of one that has imported everything.
"""

import os
import sys

from dpok_cli import cli

os.chdir(FOLDER)  # noqa: F821
told = os.open(TOLD, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # noqa: F821
os.dup2(told, 1)
os.dup2(told, 2)
sys.exit(cli.run(ARGUMENTS))  # noqa: F821
