"""Tables I and II of paper 001 on the open corpus, docs/tsel.md."""
