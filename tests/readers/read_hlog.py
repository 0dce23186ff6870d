"""Reads a histogram log with PyPI's hdrhistogram and prints what is in it."""
import json
import math
import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

MAX_NS = 2**37 - 1
reader = HistogramLogReader(sys.argv[1], HdrHistogram(1, MAX_NS, 2))
totals, intervals = {}, 0
while (interval := reader.get_next_interval_histogram()) is not None:
    intervals += 1
    tag = interval.get_tag()
    totals.setdefault(tag, HdrHistogram(1, MAX_NS, 2)).add(interval)
answer = {"intervals": intervals}
for tag, total in totals.items():
    answer[tag] = {"count": total.get_total_count()}
    count = total.get_total_count()
    for name, quantile in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)]:
        # This reader rounds the rank to the nearest, Java's and ours round it up:
        # ask for the rank itself.
        percentile = 100 * math.ceil(quantile * count) / max(count, 1)
        answer[tag][name + "_ns"] = total.get_value_at_percentile(percentile)
print(json.dumps(answer))
