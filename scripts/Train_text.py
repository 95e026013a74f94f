#!/usr/bin/env python
"""Trains the text encoder: the flags of `braingen train text`, under the name people know."""

import sys

from braingen.cli import main

sys.exit(main(["train", "text", *sys.argv[1:]]))
