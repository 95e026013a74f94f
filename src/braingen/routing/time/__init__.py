"""Time routers: one file per kind, each with a line in `braingen.config.kinds`."""
