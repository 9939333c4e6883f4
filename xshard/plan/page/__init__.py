"""A plan as HTML: figures and tables without scripts, from elements that escape all their text."""
