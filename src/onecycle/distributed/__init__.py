"""A run that several processes compute: who they are, what they tell each other, and sums in a fixed order."""
