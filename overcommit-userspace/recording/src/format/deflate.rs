//! Compressed histograms, as HdrHistogram's version 2 has them. The crate makes a compressor for each, which
//! costs more than to use it: a recording has thousands a second.

use anyhow::{Context, Result, anyhow, bail};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use hdrhistogram::serialization::{Serializer, V2Serializer};
use hdrhistogram::{Counter, Histogram};
use std::io::Write;

/// `V2_COMPRESSED_COOKIE` of HdrHistogram, which comes before the length of what is compressed.
pub(super) const COOKIE: u32 = 0x1c84_9314;
/// Bytes that a short stream may take beside what is in it: its head, its sum, and the heads of its blocks.
const BESIDE: usize = 64;

/// Serializes and compresses, with a compressor that is kept.
pub(super) struct Deflated {
    serializer: V2Serializer,
    serialized: Vec<u8>,
    compress: Compress,
    compressed: Vec<u8>,
}

impl Default for Deflated {
    fn default() -> Self {
        Self {
            serializer: V2Serializer::new(),
            serialized: Vec::new(),
            compress: Compress::new(Compression::default(), true),
            compressed: Vec::new(),
        }
    }
}

impl Serializer for Deflated {
    type SerializeError = anyhow::Error;

    fn serialize<T: Counter, W: Write>(
        &mut self,
        histogram: &Histogram<T>,
        writer: &mut W,
    ) -> Result<usize> {
        self.serialized.clear();
        let serialized = self.serializer.serialize(histogram, &mut self.serialized);
        serialized.map_err(|error| anyhow!("{error}"))?;
        self.compressed.clear();
        // What cannot be compressed takes a few bytes more.
        self.compressed.reserve(self.serialized.len() + self.serialized.len() / 8 + BESIDE);
        self.compress.reset();
        let (from, to) = (&self.serialized, &mut self.compressed);
        let status = self.compress.compress_vec(from, to, FlushCompress::Finish)?;
        if status != Status::StreamEnd {
            bail!("a compressed histogram does not fit its buffer");
        }
        let length = u32::try_from(self.compressed.len()).context("a histogram is too large")?;
        writer.write_all(&[COOKIE, length].map(u32::to_be_bytes).concat())?;
        writer.write_all(&self.compressed)?;
        Ok(self.compressed.len() + 2 * size_of::<u32>())
    }
}

/// Decompresses, with a decompressor and room that are kept.
pub(super) struct Inflater {
    decompress: Decompress,
    bytes: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Self {
        Self { decompress: Decompress::new(true), bytes: Vec::new() }
    }
}

impl Inflater {
    /// What is in a stream; of a longer one at least the first `most` bytes.
    ///
    /// # Errors
    /// It is none, or ends too early.
    pub(super) fn inflate(&mut self, stream: &[u8], most: usize) -> Result<&[u8]> {
        self.bytes.clear();
        self.bytes.reserve(most);
        self.decompress.reset(true);
        // All at once, so that it needs no window of its own.
        let finish = FlushDecompress::Finish;
        let status = self.decompress.decompress_vec(stream, &mut self.bytes, finish)?;
        if status != Status::StreamEnd && self.bytes.len() < most {
            bail!("it ends too early");
        }
        Ok(&self.bytes)
    }
}
