//! A file that a user names, outside a recording.

use crate::recording::beneath;
use crate::recording::owner::Owner;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// Puts a whole file in place at once; it belongs to the user who ran sudo, and nobody else can read
/// it. What is there is replaced if it is a file; a link or a device is left alone.
///
/// # Errors
/// It cannot be written, or something else is there.
pub fn put(path: &Path, content: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    put_there(path, content).with_context(failed)
}

fn put_there(path: &Path, content: &[u8]) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).context("it names no file")?;
    if let Ok(there) = fs::symlink_metadata(path) {
        ensure!(there.is_file(), "it is no regular file");
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = beneath::folder(folder.unwrap_or(Path::new(".")))?;
    let owner = Owner::behind_sudo()?.map(|owner| (owner.uid, owner.gid));
    Ok(beneath::replace(&folder, name, content, owner)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("victim"), "precious").unwrap();
        symlink(at("victim"), at("out.new")).unwrap();
        symlink(at("victim"), at("link")).unwrap();
        put(&at("out"), b"a").unwrap();
        put(&at("out"), b"b").unwrap();
        assert_eq!(fs::read(at("out")).unwrap(), b"b");
        assert_eq!(fs::metadata(at("out")).unwrap().permissions().mode() & 0o777, 0o600);
        let error = put(&at("link"), b"a").unwrap_err();
        assert!(format!("{error:#}").contains("no regular file"), "{error:#}");
        assert_eq!(fs::read(at("victim")).unwrap(), b"precious");
        assert!(!at("out.new").exists());
    }
}
