"""Scans as labs have them: files are found and paired by their BIDS entities, read in blocks of
trials, and never changed.

names        files and the entities of their names; links are followed
events       tables of trials: which column names the picture, split, bad trials, order of onsets
forms/       one reader per form of responses, in one registry
pairing      which responses belong to which trials
masks        which voxels are kept, and their regions
stimuli      pictures as files or rows of arrays; equal pictures are one picture
identity     numbers of subjects, sessions and pictures, which never change
own          all of it together, as `prepare` asks for it
reliability  split-half reliability and noise ceiling
"""
