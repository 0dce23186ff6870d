//! A guest's end of vsock on the kernel's vhost-vsock: what the driver in a guest does, without a guest.
//! The packets are those of include/uapi/linux/virtio_vsock.h, the rings those of virtio_ring.h.

use crate::{PAGE, memory};
use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::io::{BufRead, Write, stdin, stdout};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::sync::atomic::{Ordering::SeqCst, fence};

const DEVICE: &str = "/dev/vhost-vsock";
const HOST: u64 = 2;
/// Descriptors of a ring.
const SIZE: u16 = 16;
/// Where a ring has what is on offer, and what was used, behind its descriptors.
const AVAILABLE: usize = 256;
const USED: usize = 512;
/// The ring of what the host sends, and of what it is sent.
const RX: usize = 0;
const TX: usize = 1;
/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;
/// `VRING_DESC_F_WRITE`: the host writes there.
const WRITE: u16 = 2;
/// A stream; see `enum virtio_vsock_op`.
const STREAM: u16 = 1;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
/// In neither direction.
const BOTH: u32 = 3;
const LENGTH: usize = size_of::<Header>();

#[repr(C)]
struct Memory {
    regions: u32,
    padding: u32,
    guest: u64,
    bytes: u64,
    user: u64,
    flags: u64,
}

#[repr(C)]
struct VringState {
    index: u32,
    number: u32,
}

#[repr(C)]
struct VringAddress {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

#[repr(C)]
struct VringFile {
    index: u32,
    descriptor: i32,
}

/// Two words, as the number of the request has it: the regions come behind them.
type MemoryHead = [u32; 2];

nix::ioctl_none!(set_owner, 0xaf, 0x01);
nix::ioctl_write_ptr!(set_features, 0xaf, 0x00, u64);
nix::ioctl_write_ptr!(set_memory, 0xaf, 0x03, MemoryHead);
nix::ioctl_write_ptr!(set_size, 0xaf, 0x10, VringState);
nix::ioctl_write_ptr!(set_address, 0xaf, 0x11, VringAddress);
nix::ioctl_write_ptr!(set_base, 0xaf, 0x12, VringState);
nix::ioctl_write_ptr!(set_kick, 0xaf, 0x20, VringFile);
nix::ioctl_write_ptr!(set_call, 0xaf, 0x21, VringFile);
nix::ioctl_write_ptr!(set_cid, 0xaf, 0x60, u64);
nix::ioctl_write_ptr!(set_running, 0xaf, 0x61, i32);

#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Header {
    source_cid: u64,
    cid: u64,
    source_port: u32,
    port: u32,
    length: u32,
    kind: u16,
    operation: u16,
    flags: u32,
    room: u32,
    taken: u32,
}

/// Holds the device without a CID, until a line comes in.
pub(crate) fn hold() -> Result<()> {
    let _device = open()?;
    println!("ready");
    crate::wait_for_line()
}

/// For each line that comes in, sends `GET` to that port of the host over a new connection, and prints the
/// line that comes back; `closed` where the host closes it instead.
pub(crate) fn ask(cid: u64, port: u32) -> Result<()> {
    let mut guest = Guest::new(cid)?;
    println!("ready");
    for (line, own_port) in stdin().lock().lines().zip(1024..) {
        line?;
        println!("{}", guest.ask(own_port, port)?);
        stdout().flush()?;
    }
    Ok(())
}

fn open() -> Result<File> {
    File::options().read(true).write(true).open(DEVICE).context(DEVICE)
}

struct Guest {
    _device: File,
    cid: u64,
    /// A page of each ring, then the host's buffers, then one of our own.
    memory: *mut u8,
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
    /// Entries taken from each ring of what was used, and given to each of what is on offer.
    seen: u16,
    offered: [u16; 2],
}

impl Guest {
    fn new(cid: u64) -> Result<Self> {
        let device = open()?;
        let pages = 2 + usize::from(SIZE) + 1;
        let memory = memory(pages)?;
        crate::touch(memory, pages);
        let event = || EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK);
        let (kicks, calls) = ([event()?, event()?], [event()?, event()?]);
        let regions = Memory {
            regions: 1,
            padding: 0,
            // The guest's addresses are our own.
            guest: memory as u64,
            bytes: (pages * PAGE) as u64,
            user: memory as u64,
            flags: 0,
        };
        let fd = device.as_raw_fd();
        // SAFETY: what each call reads lives until it returns, and the rings as long as the device.
        unsafe {
            set_owner(fd)?;
            set_features(fd, &VERSION_1)?;
            set_memory(fd, ptr::from_ref(&regions).cast())?;
            for (index, (kick, call)) in (0..).zip(kicks.iter().zip(&calls)) {
                let ring = memory as u64 + u64::from(index) * PAGE as u64;
                set_size(fd, &VringState { index, number: SIZE.into() })?;
                set_base(fd, &VringState { index, number: 0 })?;
                let address = VringAddress {
                    index,
                    flags: 0,
                    descriptors: ring,
                    used: ring + USED as u64,
                    available: ring + AVAILABLE as u64,
                    log: 0,
                };
                set_address(fd, &address)?;
                set_kick(fd, &VringFile { index, descriptor: kick.as_fd().as_raw_fd() })?;
                set_call(fd, &VringFile { index, descriptor: call.as_fd().as_raw_fd() })?;
            }
            set_cid(fd, &cid).with_context(|| format!("CID {cid}"))?;
            set_running(fd, &1)?;
        }
        let mut guest =
            Self { _device: device, cid, memory, kicks, calls, seen: 0, offered: [0; 2] };
        for number in 0..SIZE {
            guest.describe(RX, number, guest.buffer(number), PAGE, WRITE);
            guest.offer(RX, number)?;
        }
        Ok(guest)
    }

    /// The host's buffer of that number; behind those is our own.
    fn buffer(&self, number: u16) -> *mut u8 {
        // SAFETY: the memory has that many pages.
        unsafe { self.memory.add((2 + usize::from(number)) * PAGE) }
    }

    fn describe(&self, ring: usize, number: u16, buffer: *mut u8, length: usize, flags: u16) {
        let at = ring * PAGE + usize::from(number) * 16;
        self.put(at, buffer as u64);
        self.put(at + 8, length as u32);
        self.put(at + 12, flags);
        self.put(at + 14, 0_u16);
    }

    fn offer(&mut self, ring: usize, number: u16) -> Result<()> {
        let available = ring * PAGE + AVAILABLE;
        let place = usize::from(self.offered[ring] % SIZE);
        self.put(available + 4 + place * 2, number);
        fence(SeqCst);
        self.offered[ring] = self.offered[ring].wrapping_add(1);
        self.put(available + 2, self.offered[ring]);
        fence(SeqCst);
        self.kicks[ring].write(1)?;
        Ok(())
    }

    fn put<T>(&self, at: usize, value: T) {
        // SAFETY: rings and buffers lie in the memory, and words of rings where words can lie.
        unsafe { self.memory.add(at).cast::<T>().write_volatile(value) };
    }

    fn get<T>(&self, at: usize) -> T {
        // SAFETY: as above.
        unsafe { self.memory.add(at).cast::<T>().read_volatile() }
    }

    /// Waits until a ring has used more than `seen`.
    fn wait(&self, ring: usize, seen: u16) -> Result<()> {
        while self.get::<u16>(ring * PAGE + USED + 2) == seen {
            let mut polled = [PollFd::new(self.calls[ring].as_fd(), PollFlags::POLLIN)];
            let limit = PollTimeout::try_from(testbed::PATIENCE)?;
            ensure!(poll(&mut polled, limit)? > 0, "the host says nothing");
            self.calls[ring].read()?;
        }
        fence(SeqCst);
        Ok(())
    }

    fn send(&mut self, header: Header, data: &[u8]) -> Result<()> {
        let buffer = self.buffer(SIZE);
        // SAFETY: the buffer is a page, and longer than both.
        unsafe {
            buffer.cast::<Header>().write_unaligned(header);
            ptr::copy_nonoverlapping(data.as_ptr(), buffer.add(LENGTH), data.len());
        }
        self.describe(TX, 0, buffer, LENGTH + data.len(), 0);
        let used = self.offered[TX];
        self.offer(TX, 0)?;
        self.wait(TX, used)
    }

    fn receive(&mut self) -> Result<(Header, Vec<u8>)> {
        self.wait(RX, self.seen)?;
        let place = usize::from(self.seen % SIZE);
        self.seen = self.seen.wrapping_add(1);
        let number = self.get::<u32>(RX * PAGE + USED + 4 + place * 8) as u16;
        let buffer = self.buffer(number);
        // SAFETY: the host has written a header there.
        let header = unsafe { buffer.cast::<Header>().read_unaligned() };
        let length = (header.length as usize).min(PAGE - LENGTH);
        let mut data = vec![0; length];
        // SAFETY: the buffer is a page.
        unsafe { ptr::copy_nonoverlapping(buffer.add(LENGTH), data.as_mut_ptr(), length) };
        self.offer(RX, number)?;
        Ok((header, data))
    }

    fn ask(&mut self, source_port: u32, port: u32) -> Result<String> {
        let packet = |operation, length, flags| Header {
            source_cid: self.cid,
            cid: HOST,
            source_port,
            port,
            length,
            kind: STREAM,
            operation,
            flags,
            room: 1 << 20,
            taken: 0,
        };
        let question = b"GET\n";
        let [request, reset, shutdown] = [(REQUEST, 0), (RESET, 0), (SHUTDOWN, BOTH)]
            .map(|(operation, flags)| packet(operation, 0, flags));
        let asked = packet(DATA, question.len() as u32, 0);
        self.send(request, b"")?;
        let mut answer = Vec::new();
        loop {
            let (header, data) = self.receive()?;
            // What is left of the last connection.
            if header.port != source_port {
                continue;
            }
            let operation = header.operation;
            match operation {
                RESPONSE => self.send(asked, question)?,
                DATA => answer.extend(data),
                RESET => return Ok("closed".to_owned()),
                SHUTDOWN => {
                    self.send(reset, b"")?;
                    return Ok("closed".to_owned());
                }
                // Of credit alone.
                _ if operation > DATA => {}
                _ => bail!("the host sends operation {operation}"),
            }
            if answer.ends_with(b"\n") {
                self.send(shutdown, b"")?;
                return Ok(String::from_utf8(answer)?.trim().to_owned());
            }
        }
    }
}
