//! Finds the eBPF object that the binary carries.

use std::path::Path;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let object = root.join(format!("target/overcommit-programs-{arch}.o"));
    println!("cargo::rerun-if-changed={}", object.display());
    if object.exists() {
        println!("cargo::rustc-env=OVERCOMMIT_EBPF_OBJECT={}", object.display());
    } else {
        println!(
            "cargo::error=the eBPF programs are not built yet; run `cargo xtask build-ebpf` once"
        );
    }
}
