"""One module for each figure or table: ``run`` returns a dataclass of arrays and numbers; no files, no printing."""
