"""Checks of exercises, a module for each notebook: each says whether an answer is right, and names the mistake if not.

`checks.as_tokens(as_tokens)`, as the last line of a cell, shows the verdict in words. It is true if the answer is
right, so that `assert checks.as_tokens(as_tokens)` grades it. A wrong answer raises nothing: the cells below go on.
"""
