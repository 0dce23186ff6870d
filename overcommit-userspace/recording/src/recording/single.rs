//! A file that a user names, outside a recording: read and written as the user who ran sudo.

use crate::recording::beneath;
use crate::recording::owner::{Owner, as_user};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// Reads a file of text.
///
/// # Errors
/// It cannot be read, or is no text.
pub fn read(path: &Path) -> Result<String> {
    as_user(Owner::behind_sudo()?, || fs::read_to_string(path).context("cannot read it"))
}

/// Puts a whole file in place at once, as the user who ran sudo: only they can read it. What is there is replaced if it is a file; a link or a device is left alone.
///
/// # Errors
/// It cannot be written, or something else is there.
pub fn put(path: &Path, content: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    as_user(Owner::behind_sudo()?, || put_there(path, content)).with_context(failed)
}

fn put_there(path: &Path, content: &[u8]) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).context("it names no file")?;
    if let Ok(there) = fs::symlink_metadata(path) {
        ensure!(there.is_file(), "it is no regular file");
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = beneath::folder(folder.unwrap_or(Path::new(".")))?;
    Ok(beneath::replace(&folder, name, content, None)?)
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
