"""People as judges: a study of reconstructions that runs in any browser, from the plan to the
figures.

plan.py        which pictures are asked about, and every trial
session.py     which trials one rater sees, in which order, on which sides: a function of seed and
               rater code
site.py        the folder of static files that is given to raters, and whether it is still whole
consent.py     the text that the researcher fills in
answers.py     result files: their columns, and what is wrong with one
analysis.py    accuracy, preference, ratings, agreement
statistics.py  exact intervals, intervals over raters and images, Krippendorff's alpha
rater.py       a simulated rater, to try a study with
assets/        the page, and jsPsych with its licence
"""

from __future__ import annotations
