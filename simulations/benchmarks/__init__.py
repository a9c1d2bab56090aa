"""Benchmarks: `causaldao bench NAME --json`, side by side with the peer in the same run."""
