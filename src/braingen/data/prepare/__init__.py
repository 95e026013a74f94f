"""Scans to the working layout: masked, z-scored, cut into training and test trials.

Responses are z-scored per voxel with mean and standard deviation of *training* trials; test trials
are normalised with the same two numbers, which are kept (`data/zscore.py`). Responses are read
twice, in blocks of trials, so that memory does not grow with the trials of a session. An
interrupted call continues after the last finished piece when it is repeated; a later call notices
new sessions and changed sources.

folder           the whole: what is missing of a data folder is written
manifest         prepared.json: settings, sources and checksums
pieces           large arrays that are written in pieces and verified
first_pass       voxels with a signal, mean and standard deviation of training trials
response_checks  refuses time series and columns of labels
subject          the files of a subject
images           the pictures
summary          what was prepared, for people
"""
