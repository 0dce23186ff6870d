//! Files below a folder, opened without following a link and without leaving the folder: who owns
//! it may change it while root writes, or may have made it to have root write elsewhere.

use rustix::fs::{self, AtFlags, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Error, Result, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, fchown};

/// Whom what is made is given to, by user and group.
pub(super) type Ids = (u32, u32);

/// Opens a folder that a user names; its own path may hold links.
pub(super) fn folder(path: &std::path::Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(fs::open(path, flags, Mode::empty())?)
}

/// Opens a regular file to read; one that would block, as a fifo, is none.
pub(super) fn read(dir: &OwnedFd, name: &str) -> Result<File> {
    regular(open(dir, name, OFlags::RDONLY | OFlags::NONBLOCK)?)
}

/// Opens a file that is there, to write with these flags. One that has other names is not ours
/// alone.
pub(super) fn write(dir: &OwnedFd, name: &str, flags: OFlags) -> Result<File> {
    let file = regular(open(dir, name, OFlags::WRONLY | OFlags::NONBLOCK | flags)?)?;
    if file.metadata()?.nlink() != 1 {
        return Err(Error::other("it has another name elsewhere, and is left alone"));
    }
    Ok(file)
}

/// Makes a file that is not there.
pub(super) fn make(dir: &OwnedFd, name: &str, flags: OFlags, to: Option<Ids>) -> Result<File> {
    let file = open(dir, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags)?;
    give(&file, to)?;
    Ok(file)
}

/// Puts a whole file in place at once: readers see the old one or the new one.
pub(super) fn replace(dir: &OwnedFd, name: &str, content: &[u8], to: Option<Ids>) -> Result<()> {
    let unfinished = format!("{name}.new");
    // Of somebody who was killed; or a link, which is not to be followed.
    let _ = remove(dir, &unfinished);
    let mut file = make(dir, &unfinished, OFlags::empty(), to)?;
    file.write_all(content)?;
    Ok(fs::renameat(dir, &unfinished, dir, name)?)
}

/// The folder that a file of that name is in, and its name there; makes what is missing.
pub(super) fn parent<'a>(
    dir: &OwnedFd,
    name: &'a str,
    to: Option<Ids>,
) -> Result<(OwnedFd, &'a str)> {
    let mut dir = dir.try_clone()?;
    let mut rest = name;
    while let Some((first, others)) = rest.split_once('/') {
        dir = subfolder(&dir, first, to)?;
        rest = others;
    }
    Ok((dir, rest))
}

/// Opens a folder within one, and makes it if it is not there.
pub(super) fn subfolder(dir: &OwnedFd, name: &str, to: Option<Ids>) -> Result<OwnedFd> {
    let is_new = match fs::mkdirat(dir, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error.into()),
    };
    let made = open(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    if is_new {
        // Whoever owns the folder above may have put another in its place.
        if made.metadata()?.uid() != rustix::process::geteuid().as_raw() {
            return Err(Error::other("somebody else has put another folder there"));
        }
        give(&made, to)?;
    }
    Ok(made.into())
}

/// Takes a file away; a link itself, not what it points to.
pub(super) fn remove(dir: &OwnedFd, name: &str) -> Result<()> {
    Ok(fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Takes a folder of folders away, with the file of that name in each; what holds anything else
/// stays.
pub(super) fn remove_folders(dir: &OwnedFd, name: &str, file: &str) -> Result<()> {
    let outer: OwnedFd = open(dir, name, OFlags::DIRECTORY)?.into();
    for entry in Dir::read_from(&outer)? {
        let entry = entry?;
        let Ok(inner) = entry.file_name().to_str() else { continue };
        let _ = remove_folder(&outer, inner, file);
    }
    Ok(fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Takes a folder away that holds nothing but the file of that name.
pub(super) fn remove_folder(dir: &OwnedFd, name: &str, file: &str) -> Result<()> {
    let folder = open(dir, name, OFlags::DIRECTORY)?;
    fs::unlinkat(&folder, file, AtFlags::empty())?;
    Ok(fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Gives a file or folder away by its descriptor.
pub(super) fn give(file: &File, to: Option<Ids>) -> Result<()> {
    to.map_or(Ok(()), |(uid, gid)| fchown(file, Some(uid), Some(gid)))
}

fn open(dir: &OwnedFd, name: &str, flags: OFlags) -> Result<File> {
    let is_made = flags.contains(OFlags::CREATE);
    let mode = if is_made { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match fs::openat2(dir, name, flags, mode, resolve) {
        Ok(file) => Ok(file.into()),
        Err(Errno::LOOP | Errno::XDEV) => {
            Err(Error::other("it is behind a link, or outside the folder"))
        }
        Err(error) => Err(error.into()),
    }
}

fn regular(file: File) -> Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(Error::other("it is no regular file")) }
}
