#!/usr/bin/env python
"""Teaches the diffusion model to listen: the flags of `braingen finetune`, under the name people
know.

The configuration is nsd_subj01 unless --config names another.
"""

import sys

from braingen.cli import script

sys.exit(script("finetune"))
