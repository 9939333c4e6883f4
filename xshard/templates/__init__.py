"""Well-known ways to split a train step, found in any step: each is a family of its plans.

`weights` reads off the graph what is state, `roles` says which choices a template leaves, and
`complete` has the solver complete them.
"""
