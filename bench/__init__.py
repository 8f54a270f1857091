"""Load benchmarks: Hookline beside its peers on one scripted upstream.

Lives here: what `scripts/bench` runs. Elsewhere: bounds that tests may assert without a clock (tests/).
Idea: on a shared machine only ratios within one run mean anything, so everything is measured in turns and divided by a reference."""
