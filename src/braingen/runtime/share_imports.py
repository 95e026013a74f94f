"""Imported last by the server that processes are forked from: what it has imported is looked at by
no garbage collection from then on.

Half a million objects of libraries take a collection a quarter of a second in every process, and it
writes to the memory that the processes share.
"""

import gc

gc.collect()
gc.freeze()
