"""Space routers: one file per kind, each with a line in `braingen.config.kinds`.

Every router is made so that at the start it gives the mean over the experts, exactly the unrouted
level.
"""
