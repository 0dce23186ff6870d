// Reads a histogram log with npm's hdr-histogram-js and prints what is in it.
const fs = require("fs");
const hdr = require("hdr-histogram-js");

const log = fs.readFileSync(process.argv[2], "utf8");
const reader = new hdr.HistogramLogReader(log);
const totals = {};
let intervals = 0;
let interval;
while ((interval = reader.nextIntervalHistogram()) !== null) {
  intervals += 1;
  const tag = interval.tag;
  totals[tag] ??= hdr.build({
    lowestDiscernibleValue: 1,
    highestTrackableValue: 2 ** 37 - 1,
    numberOfSignificantValueDigits: 2,
  });
  totals[tag].add(interval);
}
const answer = { intervals };
for (const [tag, total] of Object.entries(totals)) {
  answer[tag] = { count: total.totalCount };
  for (const [name, quantile] of [["p50", 0.5], ["p90", 0.9], ["p99", 0.99], ["p999", 0.999]]) {
    // As in the Python script: ask for the rank itself.
    const percentile = (100 * Math.ceil(quantile * total.totalCount)) / total.totalCount;
    answer[tag][name + "_ns"] = total.totalCount ? total.getValueAtPercentile(percentile) : 0;
  }
}
console.log(JSON.stringify(answer));
