//! A process that looks like a VM to overcommit, and faults on command.
//!
//! `stand-in MODE [ARGUMENT]` prints `ready`, does its work when a line comes in,
//! prints its result and waits for a second line.

mod lock;
#[path = "../../../../overcommit-userspace/src/kernel/userfault.rs"]
mod userfault;
mod vsock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, clone};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead, Read, Write, stdin};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use userfault::Faultable;

const PAGE: usize = 4096;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let mode = words.next().context("no mode")?;
    let number: u64 = words.next().context("no number")?.parse()?;
    match mode.as_str() {
        // A process without KVM that faults all the time, for so many ms.
        "bystander" => bystander(Duration::from_millis(number)),
        // A second process in the same memory takes so many faults.
        "share" => with_kvm(|| share(number as usize)),
        // Another process writes so many pages into this one.
        "written" => with_kvm(|| written(number as usize)),
        "write" => write_into(number as i32, &words.next().context("no address")?),
        // So many fresh pages are touched.
        "touch" => with_kvm(|| {
            touch(memory(number as usize)?, number as usize);
            Ok("touched".to_owned())
        }),
        // It goes on to touch so many fresh pages a second, a tenth of them at a time, in a thread called
        // like a vCPU.
        "steady" => with_kvm(|| {
            let vcpu = std::thread::Builder::new().name("CPU 0/KVM".to_owned());
            vcpu.spawn(move || steady(number as usize))?;
            Ok("touches".to_owned())
        }),
        // So many faults of each kind, but for those that need a pool or a helper.
        "kinds" => with_kvm(|| kinds(number as usize)),
        // So many threads sleep in a fault at once, on one CPU; a line wakes them. Then
        // once more without waiting, and so on.
        "asleep" => with_kvm(|| asleep(number as usize)),
        // So many faults wait for the lock of the address space.
        "locked" => {
            let busy = lock::busy()?;
            with_kvm(move || lock::wait(number as usize, busy))
        }
        // So many faults wait for a CPU when what they slept for has come.
        "starved" => with_kvm(|| starved(number as usize)),
        // A port of a guest: what comes in at that path comes out at the one with .guest behind it.
        "port" => port(&words.next().context("no path")?),
        // A guest with that CID asks a port of the host, whenever a line comes in.
        "vsock" => vsock::ask(number, words.next().context("no port")?.parse()?),
        // A process that holds vhost-vsock and has no CID.
        "vsock-held" => vsock::hold(),
        // A thread called like a vCPU faults, and is held for so many ms.
        "held" => {
            let held = Held::new()?;
            with_kvm(|| held.hold(Duration::from_millis(number)))
        }
        _ => bail!("unknown mode {mode}"),
    }
}

/// As QEMU does it: one client at a time at either end; what the guest's end does not take stays.
fn port(path: &str) -> Result<()> {
    let (hosts, guests) = (UnixListener::bind(path)?, UnixListener::bind(format!("{path}.guest"))?);
    println!("ready");
    let mut host = hosts.accept()?.0;
    loop {
        let mut guest = guests.accept()?.0;
        loop {
            let mut polled = [&host, &guest].map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
            poll(&mut polled, PollTimeout::NONE)?;
            let [is_host, is_guest] = polled.map(|end| end.any().unwrap_or(false));
            // A guest that is gone, or a host.
            if is_guest && !pass_on(&mut guest, &mut host) {
                break;
            }
            if is_host && !pass_on(&mut host, &mut guest) {
                host = hosts.accept()?.0;
            }
        }
    }
}

/// Whether there was something to pass on.
fn pass_on(from: &mut UnixStream, to: &mut UnixStream) -> bool {
    let mut bytes = [0; 4096];
    let length = from.read(&mut bytes).unwrap_or(0);
    // Whoever is gone misses it.
    let _ = to.write_all(&bytes[..length]);
    length > 0
}

fn wait_for_line() -> Result<()> {
    let mut line = String::new();
    stdin().lock().read_line(&mut line)?;
    Ok(())
}

/// Opens KVM, does the work on the first line, ends on the second.
fn with_kvm(work: impl FnOnce() -> Result<String>) -> Result<()> {
    let _kvm = File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
    println!("ready");
    wait_for_line()?;
    println!("{}", work()?);
    wait_for_line()
}

/// Fresh memory of that many small pages.
fn memory(pages: usize) -> Result<*mut u8> {
    let address = map(pages * PAGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)?;
    // SAFETY: the range is the mapping just made.
    unsafe { libc::madvise(address.cast(), pages * PAGE, libc::MADV_NOHUGEPAGE) };
    Ok(address)
}

/// A new mapping, of a file or of none.
fn map(bytes: usize, flags: i32, file: Option<&File>) -> Result<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let file = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: a new mapping of the kernel's choice touches nothing else.
    let address = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, file, 0) };
    ensure!(address != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    Ok(address.cast())
}

/// Fresh memory of that many pages whose faults wait for us.
fn faultable(pages: usize) -> Result<Faultable> {
    Faultable::new(memory(pages)?, pages * PAGE)
}

fn touch(memory: *mut u8, pages: usize) {
    for page in 0..pages {
        // SAFETY: the caller's mapping has that many pages.
        unsafe { memory.add(page * PAGE).write_volatile(1) };
    }
}

fn steady(pages: usize) -> Result<()> {
    let memory = memory(pages)?;
    let mut next = Instant::now();
    loop {
        touch(memory, pages.div_ceil(10));
        // SAFETY: the mapping has that many pages, and nobody else knows it.
        unsafe { libc::madvise(memory.cast(), pages * PAGE, libc::MADV_DONTNEED) };
        next += Duration::from_millis(100);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Bytes that the kernel maps around a page of a file that is read (`fault_around_bytes`,
/// mm/memory.c), and those of a huge page.
const AROUND: usize = 16 * PAGE;
const HUGE: usize = 2 << 20;

/// Anonymous, shared and file pages; copies of the pages of a file and of another process;
/// a huge page, and pages that wait for us. Says how many of a file were read, and how many
/// waited.
fn kinds(pages: usize) -> Result<String> {
    let anonymous = memory(pages)?;
    touch(anonymous, pages);
    // SAFETY: the call takes a name and flags, and gives a descriptor or an error.
    let shared = unsafe { libc::memfd_create(c"shared".as_ptr(), libc::MFD_CLOEXEC) };
    ensure!(shared >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just given it to us.
    let shared = unsafe { File::from_raw_fd(shared) };
    shared.set_len((pages * PAGE) as u64)?;
    touch(map(pages * PAGE, libc::MAP_SHARED, Some(&shared))?, pages);
    let file = File::open(std::env::current_exe()?)?;
    let length = file.metadata()?.len() as usize;
    let read = map(length, libc::MAP_PRIVATE, Some(&file))?;
    let windows = length / AROUND;
    for window in 0..windows {
        // SAFETY: the mapping has that many bytes.
        unsafe { read.add(window * AROUND).read_volatile() };
    }
    ensure!(length >= pages * PAGE, "the file is too short");
    touch(map(length, libc::MAP_PRIVATE, Some(&file))?, pages);
    // SAFETY: the child does nothing but wait for its end.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => loop {
            nix::unistd::pause();
        },
        nix::unistd::ForkResult::Parent { child } => {
            touch(anonymous, pages);
            nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL)?;
            waitpid(child, None)?;
        }
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    touch(map(HUGE, flags, None)?, 1);
    for number in 0..WAITED_FOR {
        let page = faultable(1)?;
        let address = page.memory as usize;
        let fresh = memory(1)? as usize;
        // The last one goes on: its exit might be seen after we are done.
        let waiting = std::thread::spawn(move || match number % 3 {
            0 => touch(address as *mut u8, 1),
            1 => {
                have_read(address);
                touch(fresh as *mut u8, 1);
            }
            _ => have_read(address),
        });
        page.await_fault()?;
        page.resolve()?;
        ensure!(waiting.join().is_ok(), "a thread failed");
    }
    Ok(format!("{windows} {WAITED_FOR}"))
}

/// Faults that wait for us; most are taken by the kernel for a system call, as it does for
/// KVM.
const WAITED_FOR: usize = 20;

/// Has the kernel read a byte of this process, by get_user_pages.
fn have_read(address: usize) {
    let local = &mut [0];
    let local = &mut [std::io::IoSliceMut::new(local)];
    let remote = [nix::sys::uio::RemoteIoVec { base: address, len: 1 }];
    let _ = nix::sys::uio::process_vm_readv(nix::unistd::getpid(), local, &remote);
}

fn bystander(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let pages = 4096;
        let memory = memory(pages)?;
        touch(memory, pages);
        // SAFETY: nothing points into the mapping any more.
        unsafe { libc::munmap(memory.cast(), pages * PAGE) };
    }
    Ok(())
}

fn share(pages: usize) -> Result<String> {
    let memory = memory(pages)?;
    let mut stack = vec![0u8; 64 * PAGE];
    // The stack and all else is touched already: only the pages are new.
    stack.fill(1);
    let child = Box::new(|| {
        touch(memory, pages);
        0
    });
    // VFORK: the parent stands still until the child is gone, and so does all that
    // the child borrows.
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: the child only writes to its mapping, on a stack of its own that
    // outlives it.
    let child: Pid = unsafe { clone(child, &mut stack, flags, Some(libc::SIGCHLD)) }?;
    let status = waitpid(child, None)?;
    ensure!(status == WaitStatus::Exited(child, 0), "the sharing process: {status:?}");
    Ok(child.to_string())
}

fn written(pages: usize) -> Result<String> {
    let memory = memory(pages)? as usize;
    let me = std::process::id().to_string();
    let mut writer = std::process::Command::new(std::env::current_exe()?);
    let status = writer.args(["write", &me, &format!("{memory}:{pages}")]).status()?;
    ensure!(status.success(), "the writer failed");
    Ok("written".to_owned())
}

fn write_into(pid: i32, range: &str) -> Result<()> {
    let (address, pages) = range.split_once(':').context("no range")?;
    let (address, pages): (usize, usize) = (address.parse()?, pages.parse()?);
    for page in 0..pages {
        let local = [std::io::IoSlice::new(&[1])];
        let remote = [nix::sys::uio::RemoteIoVec { base: address + page * PAGE, len: 1 }];
        nix::sys::uio::process_vm_writev(Pid::from_raw(pid), &local, &remote)?;
    }
    Ok(())
}

/// Rounds after the first.
const ROUNDS: usize = 9;

fn asleep(threads: usize) -> Result<String> {
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(0)?;
    nix::sched::sched_setaffinity(Pid::from_raw(0), &cpus)?;
    for round in 0..=ROUNDS {
        let pages = faultable(threads)?;
        let base = pages.memory as usize;
        let sleepers: Vec<_> = (0..threads)
            .map(|page| std::thread::spawn(move || touch((base + page * PAGE) as *mut u8, 1)))
            .collect();
        for _ in 0..threads {
            pages.await_fault()?;
        }
        if round == 0 {
            let asleep = threads_in_faults()?;
            println!("{asleep}");
            wait_for_line()?;
        }
        pages.resolve()?;
        for sleeper in sleepers {
            ensure!(sleeper.join().is_ok(), "a thread failed");
        }
    }
    Ok("woken".to_owned())
}

/// Has the current thread run on one CPU alone, at a niceness.
fn confine(cpu: usize, niceness: i32) -> Result<()> {
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(cpu)?;
    nix::sched::sched_setaffinity(Pid::from_raw(0), &cpus)?;
    set_niceness(niceness)
}

/// Sets the niceness of the current thread.
fn set_niceness(niceness: i32) -> Result<()> {
    // SAFETY: the call takes numbers alone; 0 is the current thread.
    let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) } != 0;
    ensure!(!refused, "setpriority: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The first CPUs that this process may run on.
fn two_cpus() -> Result<[usize; 2]> {
    let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
    let all = (0..nix::sched::CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    match all.take(2).collect::<Vec<_>>()[..] {
        [first, second] => Ok([first, second]),
        _ => bail!("it takes two CPUs"),
    }
}

/// More CPU time than a thread at the lowest priority can have to its credit: two slices of 3 ms
/// (`entity_lag`).
const CREDIT: Duration = Duration::from_millis(10);

/// CPU time of this thread.
fn cpu_time() -> Result<Duration> {
    Ok(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn starved(faults: usize) -> Result<String> {
    let [busy, other] = two_cpus()?;
    let done = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&done);
    let (begins, has_begun) = channel();
    let hog = std::thread::spawn(move || -> Result<()> {
        confine(busy, 0)?;
        begins.send(())?;
        while !ends.load(Relaxed) {
            std::hint::spin_loop();
        }
        Ok(())
    });
    has_begun.recv().context("the hog has ended")?;
    let pages = (0..faults).map(|_| faultable(1)).collect::<Result<Vec<_>>>()?;
    let addresses: Vec<usize> = pages.iter().map(|page| page.memory as usize).collect();
    let starved = std::thread::spawn(move || -> Result<()> {
        confine(busy, 19)?;
        // Who has waited for long may run at once when it wakes, until it has had its share
        // (`place_entity`, kernel/sched/fair.c).
        while cpu_time()? < CREDIT {
            std::hint::spin_loop();
        }
        addresses.into_iter().for_each(|address| touch(address as *mut u8, 1));
        Ok(())
    });
    confine(other, 0)?;
    for page in &pages {
        page.await_fault()?;
        page.resolve()?;
    }
    let outcome = starved.join();
    done.store(true, Relaxed);
    let hogged = hog.join();
    ensure!(outcome.is_ok_and(|outcome| outcome.is_ok()), "the faulting thread failed");
    ensure!(hogged.is_ok_and(|outcome| outcome.is_ok()), "the hog failed");
    Ok("starved".to_owned())
}

/// Threads of this process that sleep in a fault, by their kernel stacks.
fn threads_in_faults() -> Result<usize> {
    let mut asleep = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let stack = std::fs::read_to_string(task?.path().join("stack"))?;
        asleep += usize::from(stack.contains("handle_userfault"));
    }
    Ok(asleep)
}

/// A thread called like a vCPU, which takes a fault when it is told to.
struct Held {
    page: Faultable,
    begin: Sender<()>,
    vcpu: JoinHandle<Duration>,
}

impl Held {
    fn new() -> Result<Self> {
        let page = faultable(1)?;
        let memory = page.memory as usize;
        let (begin, begins) = channel();
        let vcpu = std::thread::Builder::new().name("CPU 0/KVM".to_owned()).spawn(move || {
            let _ = begins.recv();
            let start = Instant::now();
            touch(memory as *mut u8, 1);
            start.elapsed()
        })?;
        Ok(Self { page, begin, vcpu })
    }

    /// Holds its fault for that long; says so in nanoseconds, and for how long it stood still.
    fn hold(self, time: Duration) -> Result<String> {
        self.begin.send(())?;
        self.page.await_fault()?;
        let start = Instant::now();
        std::thread::sleep(time);
        let held = start.elapsed();
        self.page.resolve()?;
        let stood = self.vcpu.join().map_err(|_| anyhow!("the faulting thread failed"))?;
        Ok(format!("{} {}", held.as_nanos(), stood.as_nanos()))
    }
}
