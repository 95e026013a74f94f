#!/usr/bin/env python
"""Draws the test images from brain activity: the flags of `braingen reconstruct`, under the name people know."""

import sys

from braingen.cli import main

sys.exit(main(["reconstruct", *sys.argv[1:]]))
