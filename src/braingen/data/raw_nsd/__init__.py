"""The raw release of NSD, as `aws s3 sync` leaves it.

release    where files lie, voxels and pictures
trials     responses.tsv and nsd_expdesign.mat: which picture when
betas      volumes of 1.8 mm, HDF5 or NIfTI
fsaverage  betas on the surface
masks      names and labels of region volumes
coco       captions
test_sets  NSD-synthetic and NSD-imagery, sealed
"""
