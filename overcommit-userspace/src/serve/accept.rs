//! Which of our formats a client wants most, by its `Accept` and `Accept-Encoding`.

use overcommit_recording::exposition::Format;

/// The best that a client takes; text if it says nothing that we know.
pub(super) fn format(accept: &str) -> Format {
    let mut best = (Format::Text, 0.0);
    for range in accept.split(',') {
        let (kind, quality) = weighed(range);
        let is = |name: &str| kind.iter().any(|part| part.eq_ignore_ascii_case(name));
        let format = match kind.first() {
            Some(_) if is("application/vnd.google.protobuf") => {
                let is_ours = is("proto=io.prometheus.client.MetricFamily");
                (is_ours && is("encoding=delimited")).then_some(Format::Protobuf)
            }
            // Older versions are written alike.
            Some(_) if is("application/openmetrics-text") => Some(Format::OpenMetrics),
            Some(_) if is("text/plain") || is("*/*") || is("text/*") => Some(Format::Text),
            _ => None,
        };
        if let Some(format) = format.filter(|_| quality > best.1) {
            best = (format, quality);
        }
    }
    best.0
}

/// Whether it takes gzip.
pub(super) fn takes_gzip(accept_encoding: &str) -> bool {
    accept_encoding.split(',').any(|range| {
        let (name, quality) = weighed(range);
        quality > 0.0 && name.first().is_some_and(|name| name.eq_ignore_ascii_case("gzip"))
    })
}

/// What is meant, with its parameters, and apart from them its weight.
fn weighed(range: &str) -> (Vec<&str>, f64) {
    let mut parts: Vec<&str> = range.split(';').map(str::trim).collect();
    let mut quality = 1.0;
    parts.retain(|part| match part.strip_prefix("q=") {
        Some(weight) => {
            quality = weight.trim().parse().unwrap_or(0.0);
            false
        }
        None => true,
    });
    (parts, quality)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_gets_what_it_asks_for() {
        // 2.42 with native histograms, and without; 3.5 with; a browser; nothing.
        for (accept, wanted) in [
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
                 encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,\
                 application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,\
                 */*;q=0.1",
                Format::Protobuf,
            ),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                 version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
                 encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;\
                 escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                Format::Protobuf,
            ),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Format::Text),
            ("", Format::Text),
            ("application/vnd.google.protobuf;proto=other;encoding=delimited", Format::Text),
            ("application/openmetrics-text;q=0,text/plain;q=nonsense", Format::Text),
        ] {
            assert_eq!(format(accept), wanted, "{accept}");
        }
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        assert!(takes_gzip("gzip") && takes_gzip("deflate, GZIP;q=0.5"));
        assert!(!takes_gzip("") && !takes_gzip("gzip;q=0") && !takes_gzip("br"));
    }
}
