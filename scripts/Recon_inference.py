#!/usr/bin/env python
"""Draws the test images from brain activity: the flags of `braingen reconstruct`, under the name
people know.

The configuration is nsd_subj01 unless --config names another.
"""

import sys

from braingen.cli import script

sys.exit(script("reconstruct"))
