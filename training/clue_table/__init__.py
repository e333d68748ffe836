"""Tables 1 and 2 of paper 003 on the open corpus (docs/multi_clue.md)."""
