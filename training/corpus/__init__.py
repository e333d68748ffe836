"""The open corpus of sound events: catalogues, readers and packing."""
