"""Tables 2 and 3 of paper 002 beside ours, and how well a picture's sound is found
(docs/id_uss.md)."""
