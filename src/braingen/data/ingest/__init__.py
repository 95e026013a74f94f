"""Scans as labs have them: files are found and paired by their BIDS entities, and never changed.

names          files and the entities of their names
inputs         which files of a folder are read, by subject
events         tables of trials: picture, split, bad trials, order of onsets
trial_table    one table of the trials of all subjects
forms/         one reader per form of responses, in one registry
units          which files of responses belong together
pairing        which responses belong to which tables of events
trial_rows     which row of the responses belongs to which trial
acquisition    when runs and sessions were acquired
recordings     all trials and responses of a subject
identity       numbers of subjects, sessions and pictures, which never change
subject_numbers subjects that a person names by label or number
stimuli        pictures as files or rows of arrays
picture_ids    equal pictures have one id
picture_split  which pictures are for testing
captions       captions of pictures
masks          which voxels are kept
voxel_space    where a subject's voxels lie
regions        regions of the kept voxels
reliability    split-half reliability and noise ceiling
own_scans      all of it together, as `prepare` reads it
"""
