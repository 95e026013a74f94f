#!/usr/bin/env python
"""Scores the reconstructions: the flags of `braingen evaluate`, under the name people know.

The configuration is nsd_subj01 unless --config names another.
"""

import sys

from braingen.cli import script

sys.exit(script("evaluate"))
