"""The explorer: a page in the browser that generates, ablates and maps (docs/explorer.md)."""

from braingen.runtime.extras import need

need("explore", "braingen explore")
