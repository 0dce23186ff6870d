//! Sockets behind QEMU's character devices.

use crate::vm::options::{is_on, pairs, value};
use overcommit_recording::model::vm::Listening;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// Sockets that are collected: real VMs have tens, and whoever wrote the command line could have them
/// multiply.
const MOST: usize = 1024;

/// Those of a command line, by the ids of their devices.
#[derive(Default)]
pub(super) struct Sockets(Vec<(Vec<u8>, Listening)>);

impl Sockets {
    /// Takes an option with its argument.
    pub(super) fn option(&mut self, option: &[u8], argument: &[u8]) {
        if option != b"chardev" || self.0.len() >= MOST {
            return;
        }
        let pairs = pairs(argument, b"backend");
        if value(&pairs, b"backend").is_some_and(|backend| backend == b"socket") {
            self.0.extend(value(&pairs, b"id").zip(listening(&pairs)));
        }
    }

    /// The socket behind a device, if QEMU listens there.
    pub(super) fn listening(&self, id: &[u8]) -> Option<&Listening> {
        self.0.iter().find(|(device, _)| device == id).map(|(_, socket)| socket)
    }
}

/// Where QEMU listens; it may also go out to its client.
pub(super) fn listening(pairs: &[(Vec<u8>, Vec<u8>)]) -> Option<Listening> {
    if let Some(fd) = value(pairs, b"fd") {
        // Or the name of one that the monitor was given.
        let number = str::from_utf8(&fd).ok().and_then(|fd| fd.parse().ok());
        return Some(Listening::Descriptor(number.unwrap_or(-1)));
    }
    let listens = value(pairs, b"server").is_some_and(|server| is_on(&server));
    let path = value(pairs, b"path").filter(|_| listens)?;
    Some(Listening::At(OsString::from_vec(path).into()))
}
