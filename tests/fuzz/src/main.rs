//! Fuzzes the target that `OVERCOMMIT_FUZZ_TARGET` names, under libFuzzer's own options. Its seeds
//! are written into `OVERCOMMIT_FUZZ_CORPUS` first.

#![no_main]

use libfuzzer_sys::fuzz_target;
use overcommit_fuzz::{Target, target};
use std::path::PathBuf;
use std::sync::LazyLock;

static TARGET: LazyLock<Option<&Target>> =
    LazyLock::new(|| target(&std::env::var("OVERCOMMIT_FUZZ_TARGET").ok()?));

fn lay_out() -> Option<()> {
    let folder = PathBuf::from(std::env::var_os("OVERCOMMIT_FUZZ_CORPUS")?);
    TARGET.as_ref()?.lay_out(&folder).ok()
}

fuzz_target!(
    init: if lay_out().is_none() {
        eprintln!("OVERCOMMIT_FUZZ_TARGET names no target, or its seeds cannot be written");
        std::process::exit(1);
    },
    |data: &[u8]| {
        if let Some(target) = *TARGET {
            (target.run)(data);
        }
    }
);
