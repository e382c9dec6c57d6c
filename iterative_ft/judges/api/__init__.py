"""The judge behind an endpoint: what it is asked (`rubric`), asking (`endpoint`, `replies`), and what a reply comes to."""
