//! What a guest wants. It may send anything: nothing is kept beyond a request's length.

use overcommit_recording::guest::vhostmd;
use overcommit_recording::model::vm::Dialect;

/// The longest request, in bytes.
const LONGEST: usize = 64;
/// Bytes that are thrown away at once of what is too long for one.
const CHUNK: usize = 4096;
/// Bytes of a word behind GET.
const WORD: usize = 32;

/// What it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Its figures, with the word that the answer is to have.
    Figures(Option<String>),
    /// The same as vhostmd tells them.
    Xml,
    /// Nothing that there is.
    Nonsense,
}

/// The requests of one connection.
pub(super) struct Requests {
    dialect: Dialect,
    pending: Vec<u8>,
    /// Whether what comes is the rest of a request that was too long.
    skips: bool,
}

impl Requests {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self { dialect, pending: Vec::new(), skips: false }
    }

    /// How many bytes may be added now.
    pub(super) fn room(&self) -> usize {
        let most = if self.skips { CHUNK } else { LONGEST };
        most.saturating_sub(self.pending.len())
    }

    /// Takes what was sent.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next request, if it is whole.
    pub(super) fn next(&mut self) -> Option<Request> {
        loop {
            let Some(end) = self.end() else {
                if self.pending.len() < LONGEST {
                    return None;
                }
                // What an end may begin with.
                self.pending.drain(..self.pending.len() - 3);
                let is_new = !std::mem::replace(&mut self.skips, true);
                return is_new.then_some(Request::Nonsense);
            };
            let request: Vec<u8> = self.pending.drain(..end).collect();
            if std::mem::take(&mut self.skips) {
                continue;
            }
            match self.dialect {
                Dialect::Own => match own(&request) {
                    Some(request) => return Some(request),
                    // An empty line ends what somebody else began.
                    None => continue,
                },
                Dialect::Vhostmd if vhostmd::REQUESTS.contains(&&request[..]) => {
                    return Some(Request::Xml);
                }
                Dialect::Vhostmd => return Some(Request::Nonsense),
            }
        }
    }

    /// Where a request ends.
    fn end(&self) -> Option<usize> {
        let ends: &[&[u8]] = match self.dialect {
            Dialect::Own => &[b"\n"],
            Dialect::Vhostmd => &[b"\n\n", b"\r\n\r\n"],
        };
        let at = |end: &&[u8]| {
            let found = self.pending.windows(end.len()).position(|part| part == *end);
            found.map(|place| place + end.len())
        };
        ends.iter().filter_map(at).min()
    }
}

/// A line; `None` of an empty one.
fn own(line: &[u8]) -> Option<Request> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return None;
    }
    let word = match line.strip_prefix(b"GET") {
        Some(b"") => return Some(Request::Figures(None)),
        Some(rest) => rest.strip_prefix(b" ").and_then(|word| str::from_utf8(word).ok()),
        None => None,
    };
    let is_plain = |word: &&str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=WORD).contains(&word.len()) && word.bytes().all(is_plain)
    };
    let word = word.filter(is_plain).map(str::to_owned);
    Some(word.map_or(Request::Nonsense, |word| Request::Figures(Some(word))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Those of what is sent in pieces of so many bytes.
    fn requests(dialect: Dialect, sent: &[u8], piece: usize) -> Vec<Request> {
        let mut requests = Requests::new(dialect);
        let mut found = Vec::new();
        let mut rest = sent;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(piece.min(requests.room()).min(rest.len()));
            requests.add(now);
            rest = later;
            while let Some(request) = requests.next() {
                found.push(request);
            }
            assert!(requests.room() > 0);
        }
        found
    }

    fn figures(word: &str) -> Request {
        Request::Figures(Some(word.to_owned()))
    }

    #[test]
    fn a_request_is_a_line() {
        for piece in [1, 7, 64] {
            let own = |sent: &[u8]| requests(Dialect::Own, sent, piece);
            assert_eq!(own(b"GET\nGET 8f-A3\r\n"), [Request::Figures(None), figures("8f-A3")]);
            assert_eq!(own(b"\n\r\nGET\n"), [Request::Figures(None)]);
            assert_eq!(own(b"GET"), []);
            for nonsense in ["GETX\n", "GET a b\n", "get\n", "GET \u{e4}\n", "SET x=1\n", "\0\n"] {
                assert_eq!(own(nonsense.as_bytes()), [Request::Nonsense], "{nonsense:?}");
            }
            let long = [&b"GET "[..], &[b'a'; 33], b"\nGET\n"].concat();
            assert_eq!(own(&long), [Request::Nonsense, Request::Figures(None)]);
            let endless = [&[b'x'; 5_000][..], b"\nGET 1\n"].concat();
            assert_eq!(own(&endless), [Request::Nonsense, figures("1")]);
        }
    }

    #[test]
    fn vhostmds_ends_with_an_empty_line() {
        for piece in [1, 7, 64] {
            let xml = |sent: &[u8]| requests(Dialect::Vhostmd, sent, piece);
            let twice = b"GET /metrics/XML\n\nGET /metrics/XML\r\n\r\n";
            assert_eq!(xml(twice), [Request::Xml, Request::Xml]);
            assert_eq!(xml(b"GET /metrics/XML\n"), []);
            assert_eq!(xml(b"GET /metrics/JSON\n\n"), [Request::Nonsense]);
            for length in [63, 64, 125, 5_000] {
                let long = [&vec![b'x'; length][..], b"\n\nGET /metrics/XML\n\n"].concat();
                assert_eq!(xml(&long), [Request::Nonsense, Request::Xml], "{length}");
            }
        }
    }

    proptest! {
        #[test]
        fn anything_may_be_sent(sent: Vec<u8>, piece in 1usize..80, own: bool) {
            let dialect = if own { Dialect::Own } else { Dialect::Vhostmd };
            let asked = requests(dialect, &sent, piece);
            prop_assert!(asked.len() <= sent.len());
        }
    }
}
