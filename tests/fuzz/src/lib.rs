//! What reads data of others: whatever it is given, none of it may panic, hang, or take memory
//! without end. `cargo xtask fuzz` looks for data that makes it; the tests here try what was found,
//! the seeds, and some changes of both.

mod host;
mod recording;

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Something that reads data of others.
pub struct Target {
    /// Its name, and that of its folder of seeds.
    pub name: &'static str,
    /// Reads them.
    pub run: fn(&[u8]),
    /// Seeds that are elsewhere.
    golden: fn() -> Result<Vec<Vec<u8>>>,
}

/// A target whose seeds are all in its folder.
const fn plain(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run, golden: || Ok(Vec::new()) }
}

/// All of them.
pub const TARGETS: [Target; 9] = [
    plain("command-line", host::command_line),
    plain("process", host::process),
    plain("qmp", host::qmp),
    plain("libvirt", host::libvirt),
    plain("kernel-log", host::kernel_log),
    plain("btf", host::btf),
    Target { name: "recording", run: recording::files, golden: recording::golden },
    Target { name: "histogram", run: recording::histogram, golden: recording::golden_log },
    plain("options", recording::options),
];

/// The one of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// Its seeds, and what made it fail once.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn seeds(&self) -> Result<Vec<Vec<u8>>> {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name);
        let mut seeds = (self.golden)().context("the recording that is read")?;
        if corpus.is_dir() {
            let mut paths: Vec<PathBuf> =
                fs::read_dir(&corpus)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
            paths.sort();
            for path in paths {
                seeds.push(fs::read(&path).with_context(|| format!("{}", path.display()))?);
            }
        }
        Ok(seeds)
    }

    /// Writes them into a folder, for the fuzzer to begin with.
    ///
    /// # Errors
    /// They cannot be read, or written.
    pub fn lay_out(&self, folder: &Path) -> Result<()> {
        for (number, seed) in self.seeds()?.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed)
                .with_context(|| format!("cannot write into {}", folder.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is done to data, at a place in thousandths of them.
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
        if content.is_empty() {
            return content;
        }
        let at = (content.len() * thousandth / 1_000).min(content.len() - 1);
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
            Change::Twice => content.extend_from_within(at..),
        }
        content
    }

    /// Data that each target reads: more of them by `PROPTEST_CASES`.
    fn cases() -> u32 {
        let more = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
        more.unwrap_or(100)
    }

    #[test]
    fn seeds_are_read() {
        for target in &TARGETS {
            let seeds = target.seeds().unwrap();
            assert!(!seeds.is_empty(), "{} has no seeds", target.name);
            seeds.iter().for_each(|seed| (target.run)(seed));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_makes_its_reader_panic(
            seed in any::<proptest::sample::Index>(),
            changes in proptest::collection::vec((change(), 0..1_000usize), 1..4),
        ) {
            for target in &TARGETS {
                let mut seeds = target.seeds().unwrap();
                let mut data = seeds.swap_remove(seed.index(seeds.len()));
                for (change, thousandth) in &changes {
                    data = changed(data, change, *thousandth);
                }
                (target.run)(&data);
            }
        }
    }
}
