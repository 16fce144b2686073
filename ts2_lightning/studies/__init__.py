"""Studies: grids of runs (`grid`), how they are run (`execute`), and tables and pictures over their seeds (`report`).

In come grid files and the directories of runs; out go runs, and reports beside them. What is measured of a run is the
room `evaluation`'s.
"""
