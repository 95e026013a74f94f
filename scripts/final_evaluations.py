#!/usr/bin/env python
"""Scores the reconstructions: the flags of `braingen evaluate`, under the name people know."""

import sys

from braingen.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
