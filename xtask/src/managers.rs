//! Test data of managers of VMs: fetched, and never part of this project, for libvirt's is under
//! the LGPL.

use crate::lab::{self, apt};
use crate::setup::{Tool, install, unpack};
use anyhow::{Context, Result};
use std::fs;
use testbed::target;

/// Debian's source of libvirt, with its checksum.
const LIBVIRT: (&str, &str) = (
    "pool/main/libv/libvirt/libvirt_11.3.0.orig.tar.xz",
    "6bcb0c42c4580436fea262ced56f68a6afe20f7390b1bea2116718cc034a0283",
);
const XZ: Tool = Tool { program: "xz", package: "xz-utils" };

/// Puts libvirt's command lines and domains below `target/managers/libvirt`.
///
/// # Errors
/// They are not in the cache and cannot be fetched, or not be unpacked.
pub(crate) fn libvirts_data() -> Result<()> {
    let (place, sha256) = LIBVIRT;
    let name = place.rsplit('/').next().unwrap_or(place);
    let folder = target().join("managers/libvirt");
    // What was unpacked there says of which archive it is.
    let of = target().join("managers").join(name);
    if folder.exists() && of.exists() {
        return Ok(());
    }
    install(&[XZ])?;
    let archive = apt::fetch_file(place, sha256, &lab::cache()?)?;
    let unfinished = target().join("managers/unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    let data = ["*/tests/qemuxmlconfdata/*.args", "*/tests/qemuxmlconfdata/*.xml"];
    unpack(&archive, &unfinished, &data)?;
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&unfinished, &folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(fs::write(of, "")?)
}
