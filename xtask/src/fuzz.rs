//! Looks for data that make a reader of others' data panic, hang, or take memory without end.

use crate::build;
use crate::setup::show;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use testbed::{root, target};

/// Options of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only targets whose name holds this
    target: Option<String>,
    /// Seconds for each
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// What counts the edges that data take, and AddressSanitizer, which sees what `unsafe` does wrong.
const FLAGS: [&str; 8] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
    "-Cdebug-assertions=yes",
];
/// The architecture has to be named, or build scripts are built so too.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// MiB that one of them may take: a recording that is read stays far below.
const MEMORY: u32 = 1024;
/// Seconds that data may be read for.
const PATIENCE: u32 = 20;
/// Longest data.
const LENGTH: u32 = 64 << 10;

/// Runs the fuzzer on each target.
///
/// # Errors
/// It cannot be built, or data make a target fail; it says which.
pub(crate) fn run(args: &Args) -> Result<()> {
    build::ebpf(build::Arch::HOST)?;
    let folder = target().join("fuzz");
    show(&mut cargo(&folder))?;
    let fuzz = folder.join(TARGET).join("release/fuzz");
    let targets = names(args.target.as_deref().unwrap_or_default())?;
    ensure!(!targets.is_empty(), "no target has that in its name");
    for name in targets {
        let corpus = folder.join("corpus").join(&name);
        let found = folder.join("found").join(&name);
        for folder in [&corpus, &found] {
            fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        }
        let mut fuzz = Command::new(&fuzz);
        fuzz.env("OVERCOMMIT_FUZZ_TARGET", &name).env("OVERCOMMIT_FUZZ_CORPUS", &corpus);
        fuzz.arg(&corpus).arg(format!("-artifact_prefix={}/", found.display()));
        fuzz.arg(format!("-max_total_time={}", args.seconds));
        fuzz.arg(format!("-rss_limit_mb={MEMORY}")).arg(format!("-timeout={PATIENCE}"));
        fuzz.arg(format!("-max_len={LENGTH}")).args(["-verbosity=0", "-print_final_stats=1"]);
        println!("{name}");
        show(&mut fuzz).with_context(|| {
            format!(
                "{name} fails; the data are in {}, and belong into tests/fuzz/corpus",
                found.display()
            )
        })?;
    }
    Ok(())
}

fn cargo(folder: &PathBuf) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "overcommit-fuzz",
    ]);
    cargo.args(["--features", "libfuzzer", "--bin", "fuzz", "--target", TARGET]);
    cargo.arg("--target-dir").arg(folder);
    // Takes minutes with all that counts edges in it.
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "off");
    // Sanitizers are not stable yet.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    cargo
}

/// The targets: each has a folder of seeds.
fn names(part: &str) -> Result<Vec<String>> {
    let corpus = root().join("tests/fuzz/corpus");
    let folders = fs::read_dir(&corpus).with_context(|| format!("{}", corpus.display()))?;
    let mut names = Vec::new();
    for folder in folders {
        names.push(folder?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.contains(part));
    names.sort();
    Ok(names)
}
