#!/usr/bin/env python
"""Trains the image encoder: the flags of `braingen train image`, under the name people know."""

import sys

from braingen.cli import main

sys.exit(main(["train", "image", *sys.argv[1:]]))
