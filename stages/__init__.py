"""One thin file per stage; an algorithm is a folder beside them."""
