"""A whole federation on one machine: engine, attacks, data sets, scenarios, benchmarks, report."""
