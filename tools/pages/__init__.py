"""The pages that tools/make_results.py makes of results/."""
