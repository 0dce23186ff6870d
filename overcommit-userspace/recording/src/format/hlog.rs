//! latency.hlog: HdrHistogram's log, as its Java, Python and JavaScript readers
//! take it.

use crate::format::deflate::{Deflated, Inflater};
use crate::format::values::{self, HEAD, Head};
use crate::model::latencies::Latencies;
use crate::model::metric::MetricName;
use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};
use overcommit_ebpf::bucket::{BUCKETS, MAX_NS, SIGNIFICANT_DIGITS};
use std::time::{Duration, UNIX_EPOCH};

/// The log's maximum is in milliseconds, its histograms in nanoseconds.
const MAX_VALUE_DIVISOR: f64 = 1e6;

/// The log's head. All times in it count from `base_us`, in Unix microseconds.
///
/// # Errors
/// None that can happen in memory.
pub fn header(base_us: u64) -> Result<Vec<u8>> {
    let base = UNIX_EPOCH + Duration::from_micros(base_us);
    let mut bytes = Vec::new();
    IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment("[Histograms in nanoseconds; fault.* has a line for every interval]")
        .with_start_time(base)
        .with_base_time(base)
        .with_max_value_divisor(MAX_VALUE_DIVISOR)
        .begin_log_with(&mut bytes, &mut V2DeflateSerializer::new())?;
    Ok(bytes)
}

/// Writes histograms as lines.
#[derive(Default)]
pub struct LineWriter(Deflated);

impl LineWriter {
    /// One interval of a metric. `start_ns` counts from the log's base and never
    /// decreases, in nanoseconds.
    ///
    /// # Errors
    /// The histogram cannot be serialised.
    pub fn line(
        &mut self,
        start_ns: u64,
        length_ns: u64,
        metric: &MetricName,
        latencies: &Latencies,
    ) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut builder = IntervalLogWriterBuilder::new();
        builder.with_max_value_divisor(MAX_VALUE_DIVISOR);
        builder
            .begin_log_with(&mut bytes, &mut self.0)?
            .write_histogram(
                &latencies.histogram(),
                Duration::from_nanos(start_ns),
                Duration::from_nanos(length_ns),
                Tag::new(metric.as_str()),
            )
            .map_err(|error| anyhow!("{error}"))
            .context("cannot write a histogram")?;
        // The builder repeats its comment on the divisor before each line.
        let line = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line[0] != b'#');
        Ok(line.collect::<Vec<_>>().concat())
    }
}

/// What begins the line of a metric.
const TAG: &[u8] = b"Tag=";

/// The metric of a line; `None` of a comment, or of the head of the columns.
pub fn metric(line: &[u8]) -> Option<MetricName> {
    let tag = line.strip_prefix(TAG)?.split(|byte| *byte == b',').next()?;
    Some(MetricName::new(std::str::from_utf8(tag).ok()?))
}

/// How long the head is that a log begins with, as far as its lines are whole.
pub fn head_length(log: &[u8]) -> usize {
    let lines = log.split_inclusive(|byte| *byte == b'\n');
    let is_head = |line: &&[u8]| line.ends_with(b"\n") && metric(line).is_none();
    lines.take_while(is_head).map(<[u8]>::len).sum()
}

/// The line without its metric.
pub fn untagged(line: &[u8]) -> &[u8] {
    let end = line.iter().position(|byte| *byte == b',').filter(|_| line.starts_with(TAG));
    end.map_or(line, |end| &line[end + 1..])
}

/// Reads the histograms of lines.
#[derive(Default)]
pub struct LineReader {
    inflater: Inflater,
    deserializer: Deserializer,
}

impl LineReader {
    /// What a line's histogram has: each value in order, in nanoseconds, and how often it came.
    ///
    /// # Errors
    /// It has none.
    pub fn values(&mut self, line: &[u8]) -> Result<Vec<(u64, u64)>> {
        let entry = IntervalLogIterator::new(line).next().context("a line is empty")?;
        let LogEntry::Interval(interval) = entry.map_err(|error| anyhow!("{error:?}"))? else {
            bail!("a line is no interval");
        };
        let (head, mut bytes) =
            inflate(&mut self.inflater, &decode(interval.encoded_histogram())?)?;
        if head.is_ours() {
            let counts = &bytes[HEAD..][..head.length as usize];
            return values::values(counts).context("a line is no histogram");
        }
        let histogram: Histogram<u64> = self
            .deserializer
            .deserialize(&mut bytes)
            .map_err(|error| anyhow!("a line is no histogram: {error}"))?;
        let values = histogram.iter_recorded();
        Ok(values.map(|of| (of.value_iterated_to(), of.count_at_value())).collect())
    }
}

fn decode(text: &str) -> Result<Vec<u8>> {
    use base64::Engine as _;
    let engine = &base64::engine::general_purpose::STANDARD;
    engine.decode(text).context("a line is no base64")
}

/// Bytes of the longest histogram of ours: each bucket takes nine at most.
const LONGEST: usize = HEAD + 9 * BUCKETS;

/// A histogram before it was compressed. The crate that reads it allocates what its head claims,
/// so that is held against what there is, and against what a histogram of ours may have.
fn inflate<'a>(inflater: &'a mut Inflater, compressed: &[u8]) -> Result<(Head, &'a [u8])> {
    // A cookie and a length come first.
    let stream = compressed.get(8..).context("a line is too short")?;
    let bytes = inflater.inflate(stream, LONGEST + 1);
    let bytes = bytes.context("a line is no compressed histogram")?;
    let head = Head::read(bytes).filter(|head| {
        bytes.len() <= LONGEST
            && head.length <= (bytes.len() - HEAD) as u64
            && head.digits <= u64::from(SIGNIFICANT_DIGITS)
            && head.highest <= MAX_NS
    });
    Ok((head.context("a line claims more than a histogram has")?, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::deflate::COOKIE;
    use overcommit_ebpf::layout::Metric;
    use std::io::Read;

    fn line(start_ns: u64, length_ns: u64, metric: Metric, latencies: &Latencies) -> Vec<u8> {
        LineWriter::default().line(start_ns, length_ns, &metric.into(), latencies).unwrap()
    }

    #[test]
    fn a_log_comes_back() {
        let mut latencies = Latencies::empty();
        latencies.record(2_000_000, 7);
        let mut log = header(1_764_000_000_000_000).unwrap();
        log.extend(line(0, 1_000_000_000, Metric::FaultMajor, &latencies));
        let none = Latencies::empty();
        log.extend(line(1_000_000_000, 1_000_000_000, Metric::FaultMinor, &none));
        let text = String::from_utf8(log.clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "#[Histogram log format version 1.3]");
        assert_eq!(lines[2], "#[StartTime: 1764000000.000 (seconds since epoch)]");
        assert_eq!(lines[4], "#[MaxValueDivisor: 1000000.000]");
        assert!(lines[5].starts_with("Tag=fault.major,0.000,1.000,2.0"), "{}", lines[5]);
        assert!(lines[5].contains(",HISTFAAA"), "{}", lines[5]);
        assert_eq!(lines.len(), 7);
        assert_eq!(head_length(&log), lines[..5].iter().map(|line| line.len() + 1).sum::<usize>());
        assert_eq!(head_length(&log[..70]), lines[0].len() + 1, "torn");
        let mut reader = LineReader::default();
        let line = format!("{}\n", lines[5]);
        let line = line.as_bytes();
        assert_eq!(metric(line), Some(Metric::FaultMajor.into()));
        assert_eq!(reader.values(line).unwrap(), [(2_007_039, 7)]);
        assert!(untagged(line).starts_with(b"0.000,1.000,2.0"));
        assert!(reader.values(&line[..line.len() / 2]).is_err());
    }

    /// A line whose histogram is these bytes before they are compressed.
    fn compressed(bytes: &[u8]) -> Vec<u8> {
        use base64::Engine as _;
        use flate2::{Compression, read::ZlibEncoder};
        let mut stream = Vec::new();
        ZlibEncoder::new(bytes, Compression::best()).read_to_end(&mut stream).unwrap();
        let head = [COOKIE, stream.len() as u32].map(u32::to_be_bytes).concat();
        let text = base64::engine::general_purpose::STANDARD.encode([head, stream].concat());
        format!("Tag=fault.major,0.000,1.000,2.0,{text}\n").into_bytes()
    }

    #[test]
    fn a_line_claims_no_more_than_it_holds() {
        let mut latencies = Latencies::empty();
        latencies.record(2_000_000, 7);
        let line = String::from_utf8(line(0, 1, Metric::FaultMajor, &latencies)).unwrap();
        let packed = decode(line.trim().rsplit(',').next().unwrap()).unwrap();
        let honest = inflate(&mut Inflater::default(), &packed).unwrap().1.to_vec();
        let mut reader = LineReader::default();
        assert_eq!(reader.values(&compressed(&honest)).unwrap(), [(2_007_039, 7)]);
        let put = |at: usize, bytes: &[u8]| {
            let mut claim = honest.clone();
            claim[at..at + bytes.len()].copy_from_slice(bytes);
            claim
        };
        for claim in [
            put(4, &u32::MAX.to_be_bytes()),
            put(12, &5u32.to_be_bytes()),
            put(24, &u64::MAX.to_be_bytes()),
            [honest.clone(), vec![0; LONGEST]].concat(),
            honest[..HEAD - 1].to_vec(),
        ] {
            let error = reader.values(&compressed(&claim)).unwrap_err();
            assert!(error.to_string().contains("claims more"), "{error:#}");
        }
    }
}
