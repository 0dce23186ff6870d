//! Finds what the binary carries: the eBPF object, and the library that draws the report's plots.

use std::path::Path;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let object = root.join(format!("target/overcommit-programs-{arch}.o"));
    println!("cargo::rerun-if-changed={}", object.display());
    for (name, variable) in
        [("uplot.js", "OVERCOMMIT_UPLOT_SCRIPT"), ("uplot.css", "OVERCOMMIT_UPLOT_STYLE")]
    {
        let file = root.join("target").join(name);
        println!("cargo::rerun-if-changed={}", file.display());
        println!("cargo::rustc-env={variable}={}", file.display());
    }
    let has = |name: &str| root.join("target").join(name).exists();
    if object.exists() && has("uplot.js") && has("uplot.css") {
        println!("cargo::rustc-env=OVERCOMMIT_EBPF_OBJECT={}", object.display());
    } else {
        println!(
            "cargo::error=the eBPF programs are not built yet, or the plots' library is not there; run `cargo xtask build-ebpf` once"
        );
    }
}
