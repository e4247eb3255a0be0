"""The mathematics that has more than one implementation. `reference` is the law; the others must match it."""
