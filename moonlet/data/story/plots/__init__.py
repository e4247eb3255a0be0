"""The plots: what can happen, each told by a few rules. `opening` and `shared` hold what several plots use."""
