"""Human evaluation: people compare reconstructions in a browser; intervals and agreement follow.

plan.py        images and trials
session.py     trials of one rater, their order and sides: a function of seed and rater code
site.py        the folder of static files for raters, and its integrity check
consent.py     the consent text, a template to fill in
answers.py     result files: columns and validation
analysis.py    accuracy, preference, ratings, agreement
statistics.py  exact and bootstrap intervals, Krippendorff's alpha
rater.py       a simulated rater for trial runs
assets/        the page, and jsPsych with its licence
"""

from __future__ import annotations
