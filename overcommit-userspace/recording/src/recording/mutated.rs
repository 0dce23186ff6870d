//! Whoever made a recording may have put anything into it: none makes its reader panic.

use crate::recording::golden::{FILES, SUMMARIES, copy, golden};
use crate::recording::{Folder, Recording};
use crate::report::{Format, View, rebuild};
use proptest::prelude::*;
use std::fs;

/// The files that are read.
fn read() -> Vec<&'static str> {
    let is_read = |name: &&str| !SUMMARIES.contains(name) && !name.ends_with(".hgrm");
    FILES.into_iter().filter(is_read).collect()
}

/// What is done to a file, at a place in thousandths of it.
#[derive(Clone, Debug)]
enum Change {
    Byte(u8),
    Cut(usize),
    Insert(String),
    /// The digits there, so that the number is another one.
    Number(&'static str),
    Twice,
}

/// In place of a number.
const NUMBERS: [&str; 8] =
    ["18446744073709551615", "-1", "", "0", "9223372036854775808", "1e308", "NaN", "0.1"];

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        any::<u8>().prop_map(Change::Byte),
        (1..400usize).prop_map(Change::Cut),
        "[\\x00-\\x7f]{1,40}".prop_map(Change::Insert),
        proptest::sample::select(&NUMBERS[..]).prop_map(Change::Number),
        Just(Change::Twice),
    ]
}

fn changed(mut content: Vec<u8>, change: &Change, thousandth: usize) -> Vec<u8> {
    let at = (content.len() * thousandth / 1_000).min(content.len().saturating_sub(1));
    match change {
        Change::Byte(byte) => content[at] = *byte,
        Change::Cut(length) => drop(content.drain(at..(at + length).min(content.len()))),
        Change::Insert(text) => drop(content.splice(at..at, text.bytes())),
        Change::Number(number) => {
            let is_digit = |byte: &u8| byte.is_ascii_digit();
            let Some(first) = content[at..].iter().position(is_digit) else { return content };
            let start = at + first;
            let length = content[start..].iter().take_while(|byte| is_digit(byte)).count();
            content.splice(start..start + length, number.bytes());
        }
        Change::Twice => {
            let again = content[at..].to_vec();
            content.extend(again);
        }
    }
    content
}

/// Recordings that are read: more of them by `PROPTEST_CASES`.
fn cases() -> u32 {
    let more = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    more.unwrap_or(80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// It is read, or an error says what is wrong with it.
    #[test]
    fn no_recording_makes_its_reader_panic(
        file in proptest::sample::select(read()),
        changes in proptest::collection::vec((change(), 0..1_000usize), 1..4),
        is_cut_off in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        copy(&golden(), &path);
        if is_cut_off {
            let run = fs::read_to_string(path.join("run.json")).unwrap();
            let run = run.replacen("\"end\"", "\"ended\"", 1);
            fs::write(path.join("run.json"), run).unwrap();
        }
        let mut content = fs::read(path.join(file)).unwrap();
        for (change, thousandth) in &changes {
            content = changed(content, change, *thousandth);
        }
        fs::write(path.join(file), content).unwrap();
        let folder = Folder::open(&path).unwrap();
        for format in [Format::Text, Format::Json] {
            let _ = rebuild(&folder, &View::whole(format, true));
        }
        if let Ok(recording) = Recording::open(&folder) {
            let _ = recording.each_slow_fault(|_| Ok(()));
        }
    }
}
