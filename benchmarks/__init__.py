"""Speed and memory against the targets, as ratios within one run. `make bench` runs them all."""
