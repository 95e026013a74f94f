#!/usr/bin/env python
"""Refines finished reconstructions: the flags of `braingen refine`, under the name people know."""

import sys

from braingen.cli import main

sys.exit(main(["refine", *sys.argv[1:]]))
