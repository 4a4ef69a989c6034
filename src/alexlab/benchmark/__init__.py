"""How fast it is, beside others: pairs in turn in one run, medians, and what the machine itself can do."""
