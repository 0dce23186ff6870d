//! `cargo xtask docs`: the documents that are made from the code.

use anyhow::{Context, Result};
use overcommit_recording::view::documents;
use std::fs;
use testbed::root;

/// Writes them.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn run() -> Result<()> {
    let path = root().join("docs/columns.md");
    let failed = || format!("cannot write {}", path.display());
    fs::create_dir_all(root().join("docs")).with_context(failed)?;
    fs::write(&path, documents::columns()).with_context(failed)
}
