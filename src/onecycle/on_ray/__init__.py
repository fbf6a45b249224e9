"""Ray, which takes work to the cores of other machines: the engine of studies' runs, and that of many pictures."""
