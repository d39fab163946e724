"""Does the student win? Recipes that train students in every way that matters from the same data and seeds.

`python -m benchmarks.quality run RECIPE` trains, `python -m benchmarks.quality table` writes docs/quality.md. From a
recipe (`recipes/*.yml`) `recipe.py` makes the option files of its arms (`arms.yml`), `data.py` their data, `runs.py`
runs `basicsr train` on them and writes a small JSON file a run to `results/`, with what `rating.py` finds on the test
sets, and `document.py` turns those files into the document.
"""
