"""An institution's own data: how files are read, and what is checked before a study may use them."""
