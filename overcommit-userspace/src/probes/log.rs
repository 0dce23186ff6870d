//! What the programs say about themselves, for `--verbose`.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use std::io::{Write, stderr};

/// The log of the programs, printed on stderr.
pub struct ProgramLog(EbpfLogger<Stderr>);

impl ProgramLog {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self> {
        let logger = EbpfLogger::init_with_logger(ebpf, Stderr);
        Ok(Self(logger.context("cannot read the log of the eBPF programs")?))
    }

    /// Prints what has come.
    pub fn print(&mut self) {
        self.0.flush();
    }
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // Nobody may be reading any more.
        let _ = writeln!(stderr(), "overcommit: {}: {}", record.target(), record.args());
    }

    fn flush(&self) {}
}
