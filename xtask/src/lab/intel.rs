//! The emulated host with an Intel CPU: Bochs, which has VMX with EPT. It shares no folder: its root is
//! a disk with what the scenarios need, and its kernel comes from a CD.

use crate::lab::apt::fetch_file;
use crate::lab::image::Image;
use crate::lab::tree::{Binaries, Tree};
use crate::setup::{Tool, find, install, install_packages, quietly, show, unpack};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's source of Bochs, with its checksum. Built for the console alone it is twice as fast as
/// the package, and needs nothing of another release.
const SOURCE: (&str, &str) = (
    "pool/main/b/bochs/bochs_3.0+dfsg.orig.tar.xz",
    "78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b",
);
/// How it is built: with what the model of its CPU has.
const CONFIGURED: [&str; 12] = [
    "--with-nogui",
    "--enable-x86-64",
    "--enable-cpu-level=6",
    "--enable-avx",
    "--enable-evex",
    "--enable-memtype",
    "--enable-vmx=2",
    "--enable-pci",
    "--enable-long-phy-address",
    "--enable-repeat-speedups",
    "--enable-all-optimizations",
    "--disable-docbook",
];

/// What it takes to build it, and to make its disks, beside what every lab needs.
const TOOLS: [Tool; 4] = [
    Tool { program: "g++", package: "g++" },
    Tool { program: "make", package: "make" },
    Tool { program: "xorriso", package: "xorriso" },
    Tool { program: "mkfs.ext4", package: "e2fsprogs" },
];
/// What boots from the CD, with their packages.
const LOADER: [(&str, &str); 2] = [
    ("/usr/lib/ISOLINUX/isolinux.bin", "isolinux"),
    ("/usr/lib/syslinux/modules/bios/ldlinux.c32", "syslinux-common"),
];
/// Firmware of the package seabios, which QEMU needs too.
const FIRMWARE: &str = "/usr/share/seabios";

/// Programs of the scenarios for which busybox does not do; its shell runs its own in place of others.
const PROGRAMS: [&str; 10] = [
    testbed::qemu::QEMU,
    "sh",
    "taskset",
    "mkswap",
    "swapon",
    "swapoff",
    "losetup",
    "renice",
    "fallocate",
    "dmesg",
];
/// What QEMU loads, where it is.
const QEMU_FILES: [&str; 6] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/multiboot_dma.bin",
    "/usr/share/qemu/linuxboot.bin",
    "/usr/share/qemu/multiboot.bin",
];
/// MiB of the disk beside what lies on it.
const SPARE: u64 = 256;

/// MiB of the disk for swap: 512 cylinders of 16 heads and 63 sectors, as Bochs wants whole ones.
const SWAP: u64 = 252;

/// The emulator, with the disks of one host.
pub(crate) struct Bochs {
    emulator: PathBuf,
    disc: PathBuf,
    root: PathBuf,
    work: PathBuf,
}

impl Bochs {
    /// Builds it once, and makes the disks; `work` holds `results/command`.
    ///
    /// # Errors
    /// Something cannot be had, or built.
    pub(crate) fn prepare(
        work: &Path,
        image: &Image,
        initramfs: &Path,
        binaries: &Binaries,
    ) -> Result<Self> {
        install(&TOOLS)?;
        let missing = LOADER.iter().filter(|(file, _)| !Path::new(file).exists());
        let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
        if !missing.is_empty() {
            install_packages(&missing)?;
        }
        Ok(Self {
            emulator: emulator()?,
            disc: disc(work, image, initramfs)?,
            root: root_disk(work, binaries)?,
            work: work.to_owned(),
        })
    }

    /// The command that boots it, with a copy of its root at `disk`. One instruction of its takes 4 ns
    /// of its own time; while it waits time leaps.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn command(&self, disk: &Path) -> Result<Command> {
        testbed::run(Command::new("cp").arg("--sparse=always").arg(&self.root).arg(disk))?;
        let (disk, disc) = (disk.display(), self.disc.display());
        let log = self.work.join("bochs.log");
        let swap = self.work.join("swap.img");
        fs::File::create(&swap)?.set_len(SWAP << 20)?;
        let swap = swap.display();
        let text = format!(
            "display_library: nogui\n\
             config_interface: textconfig\n\
             megs: 1536\n\
             cpu: model=corei7_haswell_4770, count=1, ips=250000000, reset_on_triple_fault=0, \
             ignore_bad_msrs=1\n\
             clock: sync=none, time0=local, rtc_sync=0\n\
             romimage: file={FIRMWARE}/bios.bin\n\
             vgaromimage: file={FIRMWARE}/vgabios-stdvga.bin\n\
             pci: enabled=1, chipset=i440fx\n\
             ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15\n\
             ata0-master: type=disk, path=\"{disk}\", mode=flat\n\
             ata0-slave: type=disk, path=\"{swap}\", mode=flat\n\
             ata1-master: type=cdrom, path=\"{disc}\", status=inserted\n\
             boot: cdrom\n\
             com1: enabled=1, mode=file, dev=/dev/stdout\n\
             log: \"{}\"\n\
             panic: action=fatal\n\
             error: action=report\n\
             info: action=ignore\n\
             debug: action=ignore\n",
            log.display()
        );
        let file = self.work.join("bochsrc");
        fs::write(&file, text)?;
        let mut command = Command::new(&self.emulator);
        command.arg("-q").arg("-f").arg(file);
        Ok(command)
    }
}

/// Bochs, built in the cache once.
fn emulator() -> Result<PathBuf> {
    let cache = super::cache()?;
    let _lock = super::lock(&cache)?;
    let place = cache.join("bochs-3.0");
    let (built, configured) = (place.join("bochs"), place.join("configured"));
    let options = CONFIGURED.join(" ");
    if built.exists() && fs::read_to_string(&configured).is_ok_and(|was| was == options) {
        return Ok(built);
    }
    let (file, sha256) = SOURCE;
    let archive = fetch_file(file, sha256, &cache)?;
    println!("building Bochs, which takes two minutes");
    let sources = cache.join("bochs-building");
    let _ = fs::remove_dir_all(&sources);
    unpack(&archive, &sources, &[])?;
    quietly(Command::new("./configure").args(CONFIGURED).current_dir(&sources))?;
    let jobs = format!("-j{}", std::thread::available_parallelism()?);
    quietly(Command::new("make").arg(jobs).arg("bochs").current_dir(&sources))?;
    fs::create_dir_all(&place)?;
    fs::rename(sources.join("bochs"), &built).context("Bochs was not built")?;
    fs::write(configured, options)?;
    fs::remove_dir_all(&sources)?;
    Ok(built)
}

/// A CD that boots the kernel; its file.
fn disc(work: &Path, image: &Image, initramfs: &Path) -> Result<PathBuf> {
    let tree = work.join("disc");
    let folder = tree.join("isolinux");
    fs::create_dir_all(&folder)?;
    for (file, _) in LOADER {
        let name = Path::new(file).file_name().context("a loader without a name")?;
        fs::copy(file, folder.join(name)).with_context(|| format!("cannot copy {file}"))?;
    }
    fs::copy(&image.kernel, folder.join("vmlinuz"))?;
    fs::copy(initramfs, folder.join("initrd"))?;
    // SeaBIOS tells of QEMU's slots for PCI devices, by which the kernel takes Bochs' devices away.
    let arguments = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable acpiphp.disable=1 lab.disk";
    let lines =
        "default linux\nprompt 0\ntimeout 1\nlabel linux\n kernel vmlinuz\n append initrd=initrd";
    fs::write(folder.join("isolinux.cfg"), format!("{lines} {arguments}\n"))?;
    let file = work.join("disc.iso");
    let mut xorriso = Command::new("xorriso");
    xorriso.args(["-as", "mkisofs", "-quiet", "-o"]).arg(&file);
    xorriso.args("-b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot".split(' '));
    show(xorriso.args(["-boot-load-size", "4", "-boot-info-table"]).arg(&tree))?;
    fs::remove_dir_all(tree)?;
    Ok(file)
}

/// A disk with what the scenarios need, each at the place where it lies here; its file.
fn root_disk(work: &Path, binaries: &Binaries) -> Result<PathBuf> {
    let tree = Tree::new(&work.join("root"))?;
    tree.put_busybox(&find("busybox")?)?;
    for name in PROGRAMS {
        tree.put_program(&find(name)?)?;
    }
    for file in QEMU_FILES.map(Path::new).into_iter().filter(|file| file.exists()) {
        tree.put(file)?;
    }
    tree.put_project(binaries)?;
    let tree = tree.path;
    fs::create_dir_all(tree.join("results"))?;
    fs::copy(work.join("results/command"), tree.join("results/command"))?;
    let size =
        testbed::run(Command::new("du").args(["--summarize", "--block-size=1M"]).arg(&tree))?;
    let size = size.split_whitespace().next().and_then(|size| size.parse::<u64>().ok());
    let file = work.join("root.img");
    fs::File::create(&file)?.set_len((size.context("du gives no size")? + SPARE) << 20)?;
    let mut make = Command::new("mkfs.ext4");
    quietly(make.args(["-q", "-E", "lazy_itable_init=0", "-d"]).arg(&tree).arg(&file))?;
    fs::remove_dir_all(&tree)?;
    Ok(file)
}
