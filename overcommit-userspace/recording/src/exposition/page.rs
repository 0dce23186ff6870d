//! One scrape: families of samples, spelled in the formats that Prometheus reads.

use crate::exposition::native::{CLASSIC_BUCKETS, Native, ZERO_THRESHOLD};
use anyhow::{Context, Result};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NativeHistogram,
    NativeHistogramBuckets, NoLabelSet, prometheus_protobuf, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// A format of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `io.prometheus.client`, the only one with native histograms.
    Protobuf,
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text, version 0.0.4.
    Text,
}

impl Format {
    /// As HTTP has it.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; \
                 encoding=delimited"
            }
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// Names and values of a sample's labels: those of its VM, and its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Labels {
    pub(super) of_vm: Arc<Vec<(&'static str, String)>>,
    pub(super) own: Vec<(&'static str, String)>,
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.of_vm.encode(encoder)?;
        self.own.encode(encoder)
    }
}

/// What a sample says.
#[derive(Clone, Debug)]
pub(super) enum Sample {
    Number(f64),
    /// Labels alone.
    Info,
    /// Since when it grows stands beside it.
    Latencies(Native, SystemTime),
}

/// Samples of one name.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub(super) name: String,
    pub(super) help: String,
    pub(super) unit: Option<Unit>,
    pub(super) kind: MetricType,
    pub(super) samples: Vec<(Labels, Sample)>,
}

impl Family {
    pub(super) fn new(
        kind: MetricType,
        name: &str,
        help: &str,
        samples: Vec<(Labels, Sample)>,
    ) -> Self {
        Self { name: name.to_owned(), help: help.to_owned(), unit: None, kind, samples }
    }
}

/// All that a scrape gets.
#[derive(Debug, Default)]
pub struct Page {
    pub(super) families: Vec<Family>,
}

impl Page {
    /// How many series it has as text, and how many as native histograms.
    pub fn series(&self) -> [usize; 2] {
        let samples = self.families.iter().flat_map(|family| &family.samples);
        samples.fold([0, 0], |[text, native], (_, sample)| match sample {
            // With the sum and the count.
            Sample::Latencies(..) => [text + CLASSIC_BUCKETS + 2, native + 1],
            Sample::Number(_) | Sample::Info => [text + 1, native + 1],
        })
    }

    /// Encoded in this format.
    ///
    /// # Errors
    /// The encoder refuses a name or a value.
    pub fn encode(self: &Arc<Self>, format: Format) -> Result<Vec<u8>> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(self)));
        let mut body = String::new();
        match format {
            Format::Protobuf => return prometheus_protobuf::encode_to_vec(&registry).context(WHAT),
            Format::OpenMetrics => text::encode(&mut body, &registry),
            Format::Text => prometheus_text::encode(&mut body, &registry),
        }
        .context(WHAT)?;
        Ok(body.into_bytes())
    }
}

/// What may fail.
const WHAT: &str = "cannot encode the metrics";

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.families.iter().filter(|family| !family.samples.is_empty()).try_for_each(|family| {
            let Family { name, help, unit, kind, samples } = family;
            let mut of = encoder.encode_descriptor(name, help, unit.as_ref(), *kind)?;
            samples
                .iter()
                .try_for_each(|(labels, sample)| sample.encode(*kind, of.encode_family(labels)?))
        })
    }
}

impl Sample {
    fn encode(&self, kind: MetricType, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match (self, kind) {
            (Self::Number(number), MetricType::Counter) => {
                encoder.encode_counter::<NoLabelSet, _, f64>(number, None)
            }
            (Self::Number(number), _) => encoder.encode_gauge(number),
            (Self::Info, _) => encoder.encode_info(&Labels::default()),
            (Self::Latencies(latencies, since), _) => {
                let (spans, deltas) = latencies.spans();
                let native = NativeHistogram {
                    schema: latencies.schema().into(),
                    zero_threshold: ZERO_THRESHOLD,
                    zero_count: latencies.zero(),
                    negative: NativeHistogramBuckets { spans: &[], deltas: &[] },
                    positive: NativeHistogramBuckets { spans: &spans, deltas: &deltas },
                    created: Some(*since),
                };
                encoder.encode_histogram_with_native::<NoLabelSet>(
                    latencies.sum_s(),
                    latencies.count(),
                    &latencies.classic(),
                    None,
                    native,
                )
            }
        }
    }
}
